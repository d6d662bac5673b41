"""How far the call under way is, for whoever wants to know. Operators carry tensors, no callables, so those wait here.

A callable takes a fraction from 0 to 1; a backend asks for it by `current()`, or calls `report`. A bar is drawn only on
a terminal and only when the work lasts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

PATIENCE = 2.0  # seconds before a bar appears
WIDTH = 40  # characters of the bar

_callable: ContextVar[Callable[[float], Any] | None] = ContextVar("mrtkern_progress", default=None)


def current() -> Callable[[float], Any] | None:
    """Who wants to know about the call under way in this thread; None: nobody."""
    return _callable.get()


def report(fraction: float) -> None:
    """Tell it, if there is somebody."""
    if (callback := _callable.get()) is not None:
        callback(fraction)


def check(op: str, progress: Any) -> None:
    """Refuse what is neither a bool nor callable."""
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"{op}: progress must be True, False or a callable, got {type(progress).__name__}")


@contextmanager
def shown(op: str, progress: bool | Callable[[float], Any]) -> Iterator[None]:
    """Inside, reports go to a callable, or with True to a bar on stderr that vanishes at the end."""
    bar = Bar(op) if progress is True else None
    token = _callable.set(bar if bar is not None else progress or None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        _callable.reset(token)
        if bar is not None:
            bar.clear()


@contextmanager
def part(first: float, last: float) -> Iterator[None]:
    """Inside, a whole is the part from `first` to `last` of the call under way."""
    whole = _callable.get()
    inner = None if whole is None else lambda fraction: whole(first * (1 - fraction) + last * fraction)
    token = _callable.set(inner)
    try:
        yield
    finally:
        _callable.reset(token)


class Bar:
    """One line on stderr."""

    def __init__(self, label: str) -> None:
        self.label, self.start, self.is_shown = label, time.monotonic(), False

    def __call__(self, fraction: float) -> None:
        if sys.stderr.isatty() and time.monotonic() - self.start > PATIENCE:
            self.is_shown = True
            done = int(WIDTH * fraction)
            text = f"{self.label} {'━' * done}{' ' * (WIDTH - done)} {fraction:4.0%}"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self.is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
