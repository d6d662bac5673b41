"""The same cases for pytest-benchmark: `pytest bench/test_bench_large_selection.py`."""

from __future__ import annotations

from typing import Any

import pytest

from bench import large_selection

pytest.importorskip("pytest_benchmark", reason="the bench extra is not installed")
CASES = [case for case in large_selection.cases() if case.N <= 20_000 and case.source != "glosses"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_large_selection(benchmark: Any, case: Any) -> None:
    benchmark.pedantic(large_selection.ours, (large_selection.make_inputs(case),), rounds=3)
