"""The cases of the shared prompt under pytest-benchmark: `pytest bench --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest

from bench import prefix

pytest.importorskip("pytest_benchmark", reason="the bench extra is not installed")
pytest.importorskip("transformers", reason="the train extra is not installed")


@pytest.mark.parametrize("name", ["mrtkern", prefix.ROWS])
@pytest.mark.parametrize("case", prefix.cases(), ids=lambda case: case.name)
def test_prefix(benchmark: Any, case: Any, name: str) -> None:
    """One row and K rows, the answers checked first."""
    inputs = prefix.make_inputs(case)
    runs = {competitor.name: competitor.run for competitor in [*prefix.own(inputs), *prefix.others(inputs)]}
    prefix.check(inputs, {key: prefix.answer(inputs, run()) for key, run in runs.items()})
    benchmark.group = case.name
    benchmark.pedantic(runs[name], rounds=5, warmup_rounds=1)
