"""The commands behind `mrtkern`: one module each, exporting `add_parser(subparsers)` and `run(args) -> int`."""


class InputError(Exception):
    """What the user gave cannot be used. The message is one sentence without a stop; the command ends with status 2."""
