"""The cases of similarity under pytest-benchmark: `pytest bench --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest

from bench import similarity

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("name", ["mrtkern", "torch program"])
@pytest.mark.parametrize("case", similarity.cases(), ids=lambda case: case.name)
def test_similarity(benchmark: Any, case: Any, name: str) -> None:
    """Ours and the torch program on the same rows, the answers checked first."""
    inputs = similarity.make_inputs(case)
    found = [*similarity.own(inputs)[:1], *similarity.others(inputs)[:1]]
    runs = {competitor.name: competitor.run for competitor in found}
    similarity.check(inputs, {key: similarity.answer(inputs, run()) for key, run in runs.items()})
    benchmark.group = case.name
    benchmark.pedantic(runs[name], rounds=5, warmup_rounds=1)
