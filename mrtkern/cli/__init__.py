"""The commands behind `mrtkern`: one module each, exporting `add_parser(subparsers)` and `run(args) -> int`."""

import argparse
import importlib
from pathlib import Path
from typing import Any


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


def new_parser(subparsers: Any, name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a command, whose texts keep their lines."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=description, epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    return parser


def add_table(parser: argparse.ArgumentParser, writes: bool) -> None:
    """IN, and OUT of commands that write a table."""
    parser.add_argument("input", type=Path, metavar="IN", help="table: .parquet, .jsonl or .csv")
    if writes:
        where = "where to write it, in the format of its ending"
        parser.add_argument("-o", "--output", type=Path, metavar="OUT", required=True, help=where)
