"""The cases of cross_entropy under pytest-benchmark: `pytest bench --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest

from bench import cross_entropy

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("name", ["mrtkern", cross_entropy.COMPILED])
@pytest.mark.parametrize("case", cross_entropy.cases(), ids=lambda case: case.name)
def test_cross_entropy(benchmark: Any, case: Any, name: str) -> None:
    """Ours and the compiled program on the same logits, the answers checked first."""
    inputs = cross_entropy.make_inputs(case)
    found = [*cross_entropy.own(inputs)[:1], *cross_entropy.others(inputs)[:1]]
    runs = {competitor.name: competitor.run for competitor in found}
    cross_entropy.check(inputs, {key: cross_entropy.answer(inputs, run()) for key, run in runs.items()})
    benchmark.group = case.name
    benchmark.pedantic(runs[name], rounds=5, warmup_rounds=1)
