"""The same cases for pytest-benchmark: `pytest bench/test_bench_head_products.py`."""

from __future__ import annotations

from typing import Any

import pytest

from bench import head_products

pytest.importorskip("pytest_benchmark", reason="the bench extra is not installed")


@pytest.mark.parametrize("case", head_products.cases(), ids=lambda case: case.name)
def test_head_products(benchmark: Any, case: Any) -> None:
    benchmark.pedantic(head_products.prepared(head_products.make_inputs(case)), rounds=3)
