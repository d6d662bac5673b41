"""The command line, `mrtkern COMMAND` and `python -m mrtkern COMMAND`. The work is in mrtkern/cli, imported when used.

Exit status: 0 done, 2 input or output that cannot be used (one line says what), 128 and the number of the signal that
ended it: 130 Ctrl-C, 143 SIGTERM, 129 a terminal that closed, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any

from mrtkern import __version__
from mrtkern.cli import InputError

COMMANDS = {
    "info": "what this installation can run, and why not the rest",
    "verify": "whether this machine selects, bit for bit, what every other one does",
    "select": "keep K of the rows of every group, or of all rows, of a parquet, jsonl or csv file",
    "dedup": "keep one row of every chain of near-duplicates of a parquet, jsonl or csv file",
    "weights": "write a column of loss weights for a trainer that takes one",
    "plan": "how many responses per prompt a budget should buy, from the variance between and within prompts",
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
        return int(module.run(args)) if module is not None else 2
    except InputError as error:
        return say(command, str(error))
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in CLI_EXTRA:
            raise
        return say(command, 'needs the cli extra, pip install "mrtkern[cli]"')


def say(command: str | None, sentence: str) -> int:
    """Print why the command ends, and its status."""
    try:
        print(f"mrtkern {command}: {sentence}", file=sys.stderr, flush=True)
    except OSError:  # nowhere is left to say it
        silence(sys.stderr)
    return 2


class Ended(BaseException):
    """A signal asks the process to end: what is half-written goes, as on Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `Ended`, once; signals that are ignored, as under nohup, or handled stay so."""
    before: dict[int, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not meet the cleaning up
        raise Ended(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        for number in [getattr(signal, name) for name in names]:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.SIG_DFL
                signal.signal(number, end)
    except ValueError:  # not the main thread, which alone may ask
        before.clear()
    try:
        yield
    except Ended:  # the process is about to end with its status: a late signal must not end it with another
        before.clear()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_streams() -> None:
    """Streams that the caller has closed go nowhere; else the first file that is opened would take their place."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def silence(stream: Any) -> None:
    """Let a stream that failed go nowhere: the flush at exit must not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv else None
    open_streams()
    try:
        with ending_on_signals():
            try:
                return run(command, argv)
            finally:
                sys.stdout.flush()  # here, so that a closed pipe or a full disk is met while it can still be answered
    except KeyboardInterrupt:
        return 130
    except Ended as signalled:
        return signalled.status
    except BrokenPipeError:
        silence(sys.stdout)
        return 141
    except OSError as error:
        if error.filename is not None:  # a file, and no stream
            raise
        silence(sys.stdout)
        return say(command, f"standard output cannot be written: {error.strerror or error}")


if __name__ == "__main__":
    sys.exit(main())
