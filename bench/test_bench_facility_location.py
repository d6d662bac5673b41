"""The cases of facility location under pytest-benchmark: `pytest bench --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest

from bench import facility_location

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("name", ["mrtkern", "torch program"])
@pytest.mark.parametrize("case", facility_location.cases(), ids=lambda case: case.name)
def test_facility_location(benchmark: Any, case: Any, name: str) -> None:
    """Ours and the torch program on the same rows, the answers checked first."""
    inputs = facility_location.make_inputs(case)
    found = [*facility_location.own(inputs)[:1], *facility_location.others(inputs)[:1]]
    runs = {competitor.name: competitor.run for competitor in found}
    facility_location.check(inputs, {key: facility_location.answer(inputs, run()) for key, run in runs.items()})
    benchmark.group = case.name
    benchmark.pedantic(runs[name], rounds=5, warmup_rounds=1)
