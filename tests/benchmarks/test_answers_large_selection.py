"""Answers of the benchmark of large selections: everyone's are checked, wrong ones are refused."""

from __future__ import annotations

import pytest
import torch

from bench import large_selection
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
