"""The benchmark of the shared prompt: it accepts its competitors and refuses wrong answers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="the train extra is not installed")

from bench import __main__, prefix
from bench.harness import Spread, WrongAnswer
from bench.report import CaseResult

pytestmark = pytest.mark.trainers

SMALL = prefix.Case(6, 3, 2)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that answers at once, made for this test alone."""
    sizes = {"vocab_size": 30, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1}
    monkeypatch.setattr(prefix, "SIZES", {**prefix.SIZES, **sizes})
    for made in (prefix.model, prefix.collator):
        made.cache_clear()
    yield
    for made in (prefix.model, prefix.collator):
        made.cache_clear()


def answers() -> tuple[Any, dict[str, Any]]:
    inputs = prefix.make_inputs(SMALL)
    found = [*prefix.own(inputs), *prefix.others(inputs)]
    return inputs, {one.name: prefix.answer(inputs, one.run()) for one in found}


def test_it_accepts_both_and_leaves_no_gradient_behind() -> None:
    inputs, found = answers()
    assert prefix.check(inputs, found).keys() == found.keys() == {"mrtkern", prefix.ROWS}
    assert all(p.grad is None for p in prefix.model("sdpa").parameters())


@pytest.mark.parametrize("part", [0, 1, -1])
def test_it_refuses_a_wrong_answer(part: int) -> None:
    inputs, found = answers()
    found["mrtkern"][part] = found["mrtkern"][part] * 1.0001
    with pytest.raises(WrongAnswer, match="loss and gradients of mrtkern are off"):
        prefix.check(inputs, found)


def test_memory_is_measured_of_both() -> None:
    found = __main__.peak_memory(prefix, prefix.make_inputs(SMALL), ["mrtkern", prefix.ROWS])
    assert list(found) == ["mrtkern", prefix.ROWS]
    assert all(used is None or used >= 0 for used in found.values())  # None: where the system does not say


def test_its_table_counts_what_both_compute() -> None:
    case = prefix.cases()[0]
    inputs = prefix.make_inputs(case)
    assert inputs["responses"].shape == (case.K, case.R)
    assert case.tokens == (len(inputs["prompt"]) - 1 + case.K * (case.R + 1), case.K * prefix.TOKENS)
    seconds = {"mrtkern": [1.0], prefix.ROWS: [1.5]}
    result = CaseResult(case.name, seconds, {}, {}, {"mrtkern": 2 << 20, prefix.ROWS: None}, 1, 1, 1)
    assert result.ratios[prefix.ROWS] == Spread(1.5, 1.5, 1.5)
    cells = [cell.strip() for cell in prefix.table([result]).splitlines()[-1].split("|")[1:-1]]
    packed, rows = case.tokens
    assert cells == [
        case.name,
        str(packed),
        str(rows),
        f"{rows / packed:.2f}",
        "1.50",
        f"{1.5 * packed / rows:.2f}",
        "2",
        "",
    ]
