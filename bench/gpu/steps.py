"""Child processes one after the other: each within a limit of its own, all within one, none able to stop the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.worker import ROOT

GRACE = 8.0  # seconds between an interrupt, after which pytest still writes its report, and the end of the whole group
LEAST = 5.0  # a step that would have less is not begun
SHOWN = 5  # lines of a step's output on the terminal
WIDTH = 160  # letters of such a line


@dataclass(frozen=True)
class Step:
    """A command, and the most seconds that it may take."""

    name: str
    limit: float
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """How a step ended: "ok", or what else became of it."""

    name: str
    ended: str
    seconds: float
    last: str = ""  # line of output


def listen() -> None:
    """A shell's background ignores Ctrl-C, and so would what is started there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Runner:
    """Runs steps until `budget` seconds are spent; all output goes to the log."""

    def __init__(self, budget: float, log: Path, folder: Path) -> None:
        self.end, self.log, self.folder = time.monotonic() + budget, log, folder
        self.done: list[Done] = []
        log.write_text("", encoding="utf-8")

    def left(self) -> float:
        """Seconds of the budget that remain."""
        return self.end - time.monotonic()

    def take(self, step: Step) -> Done:
        """Run one step, write its output down, and say how it ended."""
        limit = min(step.limit, self.left() - GRACE)
        if limit < LEAST:
            return self.keep(Done(step.name, "no time left", 0.0))
        print(f"{step.name}, at most {limit:.0f} s", flush=True)
        start = time.monotonic()
        try:
            ended, output = self.run(step, limit)
        except OSError as error:
            ended, output = "cannot start", str(error)
        with self.log.open("a", encoding="utf-8") as log:
            print(f"===== {step.name}: {ended}\n{output}", file=log)
        lines = [line[:WIDTH] for line in output.splitlines() if line.strip()]
        print("\n".join(f"    {line}" for line in lines[-SHOWN:]), flush=True)
        return self.keep(Done(step.name, ended, time.monotonic() - start, lines[-1] if lines else ""))

    def keep(self, done: Done) -> Done:
        """Remember how a step ended."""
        self.done.append(done)
        return done

    def run(self, step: Step, limit: float) -> tuple[str, str]:
        """How the process ended, and what it printed; it has a group of its own, so that nothing of it outlives it."""
        path = self.folder / "output.txt"
        with path.open("wb") as output:
            process = subprocess.Popen(
                list(step.command), cwd=ROOT, env={**os.environ, **step.environment},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=listen,
            )  # fmt: skip
            try:
                status = process.wait(limit)
                ended = "ok" if status == 0 else f"status {status}"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {limit:.0f} s"
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return ended, path.read_text(encoding="utf-8", errors="replace")
