"""`make gpu` finishes: no step outlasts its limit or stops the next one, and what was found is written down."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import facts, steps, summary
from bench.gpu.steps import Done, Runner, Step

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="passes"/>
<testcase classname="tests.b" name="fails"><failure message="not&#10;equal">trace</failure></testcase>
<testcase classname="tests.c" name="is skipped"><skipped message="why"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(60.0, tmp_path / "log", tmp_path)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_that_fails_or_cannot_start_is_written_down_and_the_next_one_runs(runner: Runner) -> None:
    commands = (python("print('dying'); raise SystemExit(3)"), ["no-such-program"], python("print('fine')"))
    ended = [runner.take(Step(str(i), 30.0, command)) for i, command in enumerate(commands)]
    assert [done.ended for done in ended] == ["status 3", "cannot start", "ok"]
    assert [done.last for done in ended][::2] == ["dying", "fine"]
    log = runner.log.read_text(encoding="utf-8")
    assert "===== 0: status 3\ndying" in log and "no-such-program" in log and "===== 2: ok\nfine" in log


@pytest.fixture
def in_the_background() -> Iterator[None]:
    """Ctrl-C is ignored, as of what a shell starts with &."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.timed
@pytest.mark.usefixtures("in_the_background")
def test_a_step_that_outlasts_its_limit_is_interrupted_with_its_children(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "LEAST", 0.0)
    child = f"import time; time.sleep(9); open({str(tmp_path / 'late')!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    done = runner.take(Step("slow", 2.0, python(code)))
    assert done.ended == "stopped after 2 s" and done.seconds < 2.0 + steps.GRACE
    assert done.last == "KeyboardInterrupt"
    assert not (tmp_path / "late").exists()


def test_nothing_is_begun_without_time(tmp_path: Path) -> None:
    runner = Runner(steps.GRACE, tmp_path / "log", tmp_path)
    assert runner.take(Step("late", 30.0, python("print()"))).ended == "no time left"


def test_limits_leave_time_for_the_table() -> None:
    args = gpu.parse([])
    assert args.budget + steps.GRACE < 8 * 60


def test_the_summary_names_steps_failed_tests_times_and_what_was_not_timed(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(REPORT, encoding="utf-8")
    timed = (
        '{"op": "similarity", "case": "small", "name": "mrtkern", "fault": "", "microseconds": 12.5, "of_floor": 0.5'
    )
    timed += ', "host_microseconds": 30.0, "launches": 2}'
    absent = '{"op": "similarity", "case": "small", "name": "peer", "fault": "absent: it", "microseconds": null}'
    (tmp_path / "bench-similarity.json").write_text(f'{{"rows": [{timed}, {absent}]}}', encoding="utf-8")
    found = summary.collected(tmp_path, [Done("build", "ok", 40.2, "built"), Done("tests", "status 1", 9.0)])
    assert found["failed tests"] == [("tests.b::fails", "not\nequal")]
    assert found["facts"] == {}
    (tmp_path / "stress.xml").write_text(REPORT[:60], encoding="utf-8")  # of a process that was ended
    (tmp_path / "facts.json").write_text('{"device": ', encoding="utf-8")
    cut_off = summary.collected(tmp_path, [])
    assert cut_off["failed tests"][0] == ("stress.xml", "was not written to its end") and cut_off["facts"] == {}
    text = summary.text(found)
    for part in ("build", "status 1", "failed: tests.b::fails: not equal", "12.5", "50%", "30.0", "peer: absent: it"):
        assert part in text


def test_steps_of_a_run_are_bounded_by_what_is_left() -> None:
    limits = [step.limit for step in gpu.timed(Path("/tmp"), False, 100.0)]
    assert len(limits) == len(gpu.device.ops()) and sum(limits) <= 100.0
    assert all(step.limit <= gpu.BENCH for step in gpu.timed(Path("/tmp"), True, 1e9))


def test_the_bits_of_rows_are_compared_with_those_in_a_larger_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that add the number of rows, or a row's place, to a logit are told from those that do not."""
    cpu, head = torch.device("cpu"), (30, 8)

    def logits(extra: Callable[[int], torch.Tensor | float]) -> Callable[..., torch.Tensor]:
        return lambda weight, h: (h.float()[:, None] * weight.float()).sum(2) + extra(len(h))

    for extra, kept, is_moved in (
        (lambda count: 0.0, [1, 7], False),
        (lambda count: float(count >= 7), [7], False),
        (lambda count: torch.arange(count)[:, None], [1, 7], True),
    ):
        monkeypatch.setattr(facts, "_logits", logits(extra))
        assert facts.same_bits(cpu, head, (1, 7), 12) == kept
        assert facts.moved_bits(cpu, head, 12) == is_moved
