"""The commands behind `mrtkern`: one module each, exporting `add_parser(subparsers)` and `run(args) -> int`."""

import importlib


class InputError(Exception):
    """What the user gave cannot be used. The message is one sentence without a stop; the command ends with status 2."""


def check_isa() -> None:
    """Refuse an MRTKERN_ISA that the compiled kernels refuse, in their words."""
    try:
        importlib.import_module("mrtkern._C").isa()
    except ImportError:  # no compiled kernels: nothing reads it
        return
    except ValueError as error:
        raise InputError(str(error)) from error


def counted(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
