"""The same cases for pytest-benchmark: `pytest bench/test_bench_linear_cross_entropy.py`."""

from __future__ import annotations

from typing import Any

import pytest

from bench import linear_cross_entropy

pytest.importorskip("pytest_benchmark", reason="the bench extra is not installed")
CASES = [case for case in linear_cross_entropy.cases() if "long" not in case.tags]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_linear_cross_entropy(benchmark: Any, case: Any) -> None:
    benchmark.pedantic(linear_cross_entropy.ours, (linear_cross_entropy.make_inputs(case),), rounds=3)
