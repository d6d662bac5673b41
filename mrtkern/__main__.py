"""The command line, `mrtkern COMMAND` and `python -m mrtkern COMMAND`. The work is in mrtkern/cli, imported when used.

Exit status: 0 done, 2 input that cannot be used (one line says what), 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from mrtkern import __version__
from mrtkern.cli import InputError

COMMANDS = {
    "info": "what this installation can run, and why not the rest",
    "select": "keep K of the rows of every group of a parquet, jsonl or csv file",
}
CLI_EXTRA = ("pyarrow", "rich", "sklearn", "matplotlib")  # import names of what mrtkern[cli] installs


def build_parser(command: str | None, module: ModuleType | None) -> argparse.ArgumentParser:
    """The whole parser, with the arguments of `command` alone: the other modules are not imported."""
    parser = argparse.ArgumentParser(prog="mrtkern", description="Training on several responses per prompt.")
    parser.add_argument("--version", action="version", version=f"mrtkern {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if module is not None and name == command:
            module.add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def run(command: str | None, argv: Sequence[str]) -> int:
    """Run one command; status 2 and one line on stderr for input that cannot be used."""
    try:
        module = importlib.import_module(f"mrtkern.cli.{command}") if command in COMMANDS else None
        args = build_parser(command, module).parse_args(argv)
        status: int = module.run(args) if module is not None else 2
        sys.stdout.flush()  # here, so that a closed pipe is met while it can still be answered
        return status
    except InputError as error:
        return say(command, str(error))
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in CLI_EXTRA:
            raise
        return say(command, 'needs the cli extra, pip install "mrtkern[cli]"')


def say(command: str | None, sentence: str) -> int:
    """Print why the command ends, and its status."""
    print(f"mrtkern {command}: {sentence}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return run(argv[0] if argv else None, argv)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 141


if __name__ == "__main__":
    sys.exit(main())
