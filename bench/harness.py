"""Time competitors in one interleaved run: A B C A B C ..., so that whatever slows the machine slows them alike.

Every ratio is taken inside a round and the median of those ratios is reported, never a ratio of medians. Before each
timed call the thread pools are given time to stop spinning; the garbage collector is off.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SETTLE = 0.008  # seconds: libgomp's idle workers spin for about 5 ms and would steal a core from the next competitor
PROGRESS_AFTER = 2.0  # seconds before progress is shown, on a terminal only


class WrongAnswer(Exception):
    """A competitor's result is wrong: nothing may be reported about its speed."""


@dataclass(frozen=True)
class Competitor:
    """One program. `clock`, where given, replaces the stopwatch here (a child process times itself)."""

    name: str
    run: Callable[[], Any]
    scale: float = 1.0  # its time is multiplied by this: a program that only did a part of the work
    note: str = ""
    clock: Callable[[], float] | None = None
    has_memory: bool = True  # False: peak memory is not asked for


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one number over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value; quartiles interpolate between values (the inclusive method)."""
        values = list(values)
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def stopwatch(run: Callable[[], Any]) -> float:
    """Seconds of one call. Its result is freed after the clock has stopped, its temporaries before."""
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result
    return seconds


def interleave(
    competitors: Iterable[Competitor], rounds: int, *, before: Callable[[], None] | None = None, label: str = "",
    settle: float = SETTLE,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of every competitor in every round, scaled; `before` runs untimed ahead of each call."""
    competitors = list(competitors)
    seconds: dict[str, list[float]] = {competitor.name: [] for competitor in competitors}
    if len(seconds) != len(competitors):
        raise ValueError(
            "interleave: names must differ from one another, got " + ", ".join(c.name for c in competitors)
        )
    progress = Progress(label, rounds)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            for competitor in competitors:
                if before is not None:
                    before()
                time.sleep(settle)
                clock = competitor.clock or (lambda run=competitor.run: stopwatch(run))
                seconds[competitor.name].append(clock() * competitor.scale)
            progress.show(done + 1)
    finally:
        progress.clear()
        if was_enabled:
            gc.enable()
    return seconds


def ratios(seconds: Mapping[str, list[float]], ours: str) -> dict[str, Spread]:
    """For each other competitor: its time over ours, round by round."""
    return {
        name: Spread.of(theirs / mine for theirs, mine in zip(values, seconds[ours], strict=True))
        for name, values in seconds.items()
        if name != ours
    }


class Progress:
    """One line on stderr, only on a terminal and only when the run lasts."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.start, self.is_shown = label, total, time.monotonic(), False

    def show(self, done: int) -> None:
        """Say how far the run is."""
        if sys.stderr.isatty() and time.monotonic() - self.start > PROGRESS_AFTER:
            self.is_shown = True
            print(f"\r\x1b[K{self.label}: round {done} of {self.total}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self.is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
