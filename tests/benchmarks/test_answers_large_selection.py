"""Answers of the benchmark of large selections: everyone's are checked, wrong ones are refused."""

from __future__ import annotations

import pytest
import torch

from bench import large_selection, report
from bench.harness import WrongAnswer

pytest.importorskip("scipy")
pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")


@pytest.mark.parametrize("kind", ["features", "matrix", "graph"])
def test_answers_are_checked(kind: str) -> None:
    inputs = large_selection.make_inputs(large_selection.Case(kind, kind, 600, 20))
    competitors = [*large_selection.own(inputs), *large_selection.others(inputs)]
    answers = {one.name: large_selection.answer(inputs, one.run()) for one in competitors}
    assert large_selection.check(inputs, answers).keys() == answers.keys() >= {"mrtkern", large_selection.HEAP}
    for wrong in (answers["mrtkern"][:-1], answers["mrtkern"].clone().fill_(3), torch.arange(20)):
        with pytest.raises(WrongAnswer):
            large_selection.check(inputs, answers | {large_selection.HEAP: wrong})


@pytest.mark.parametrize(("limit", "met"), [(75.0, "yes"), (74.9, "no")])
def test_seconds_are_a_target(limit: float, met: str) -> None:
    result = report.CaseResult("case", {"mrtkern": [80.0, 75.0, 70.0]}, {}, {}, {"mrtkern": None}, 1, 1, 1)
    target = report.Target("case", f"<= {limit} s", "seconds", limit)
    line = report.target_text([result], [target], {}, is_markdown=True).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[3:5]] == ["75.00 s", met]
