"""The cases of neighbours under pytest-benchmark: `pytest bench --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest

from bench import data, neighbors

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("name", ["mrtkern", "torch program", "faiss.knn"])
@pytest.mark.parametrize("case", neighbors.cases(), ids=lambda case: case.name)
def test_neighbors(benchmark: Any, case: Any, name: str) -> None:
    """Ours and its peers on the same rows, the answers checked first. A part of the rows stands for all of a peer's."""
    if case.rows == "glosses" and not data.cached().exists():
        pytest.skip("python -m bench.data wordnet-minilm makes the embeddings")
    inputs = neighbors.make_inputs(case)
    runs = {found.name: found.run for found in [*neighbors.own(inputs)[:1], *neighbors.others(inputs)]}
    if name not in runs:
        pytest.skip(f"{name} is no competitor here")
    chosen = {key: runs[key] for key in {"mrtkern", name}}
    neighbors.check(inputs, {key: neighbors.answer(inputs, run()) for key, run in chosen.items()})
    benchmark.group = case.name
    benchmark.pedantic(runs[name], rounds=3, warmup_rounds=1)
