"""A progress bar that appears only when the work lasts over two seconds and someone watches: stderr is a terminal."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE = 2.0  # seconds


class Steps:
    """`with Steps() as steps: steps.begin("reading", total=rows); steps.advance(n)`; the bar vanishes at the end."""

    def __init__(self) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("", total=None)
        self.timer = threading.Timer(PATIENCE, self.bar.start)
        self.timer.daemon = True

    def __enter__(self) -> Steps:
        if sys.stderr.isatty():
            self.timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar; a second time does nothing."""
        self.timer.cancel()
        if self.bar.live.is_started:  # stopping one that never began prints an empty line
            self.bar.stop()

    def begin(self, name: str, total: int | None = None) -> None:
        """Name what is done now; without a total the bar only moves."""
        self.bar.reset(self.task, total=total, description=name)

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.bar.advance(self.task, count)

    def reach(self, fraction: float) -> None:
        """This part, from 0 to 1, of what was begun without a total is done."""
        self.bar.update(self.task, total=1.0, completed=fraction)
