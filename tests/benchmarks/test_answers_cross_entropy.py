"""The benchmark of cross_entropy: it accepts its competitors and refuses wrong answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import cross_entropy
from bench.harness import WrongAnswer
from mrtkern.ops.cross_entropy.problem import Case, Problem
from tests.tools.losses import needs_cpu_backend

pytestmark = needs_cpu_backend  # whose errors the limits are


def small(inplace: bool) -> Any:
    """A few rows."""
    given = Problem(200, 50, torch.float32, wants_grad=True, inplace=inplace)
    return cross_entropy.make_inputs(Case("200 x 50", given, frozenset({"bench"})))


@pytest.mark.parametrize("inplace", [False, True])
def test_it_accepts_all_its_competitors(inplace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "compiled", lambda: torch.nn.functional.cross_entropy)  # compiling takes long
    inputs = small(inplace)
    before = inputs["x"].clone()
    competitors = [*cross_entropy.own(inputs), *cross_entropy.others(inputs)]
    answers = {found.name: cross_entropy.answer(inputs, found.run()) for found in competitors}
    assert cross_entropy.check(inputs, answers).keys() == answers.keys()
    assert all(found.clock is None or found.clock() > 0 for found in competitors)
    assert torch.equal(inputs["x"], before)


@pytest.mark.parametrize("name", ["mrtkern", "peer"])
@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_it_refuses_a_wrong_answer(name: str, part: str) -> None:
    inputs = small(inplace=False)
    right = cross_entropy.answer(inputs, cross_entropy.ours(inputs))
    wrong = {**right, part: right[part] * 1.0001}
    with pytest.raises(WrongAnswer, match=f"the {part} of {name} is off"):
        cross_entropy.check(inputs, {"mrtkern": right, name: wrong})


def test_no_target_is_ignored() -> None:
    assert int(small(inplace=False)["y"].min()) >= 0
