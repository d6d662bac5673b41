"""deduplicate: the first row of every chain, against brute force on float64 scores."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from mrtkern import _dispatch
from mrtkern.ops.neighbors import reference
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.problem import Problem
from tests import lists, oracle

CPU = _dispatch.load("neighbors", "cpu")
needs_cpu = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
every_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])


def expected(x: torch.Tensor, threshold: float) -> list[int]:
    return oracle.chains(oracle.neighbor_scores(x, x) >= threshold)


@functools.cache
def scores_of(name: str) -> Any:
    x = lists.HARD[name]()
    return oracle.neighbor_scores(x, x)


@every_backend
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", lists.HARD)
def test_one_row_of_every_chain_is_kept(name: str, threshold: float, backend: str) -> None:
    found = deduplicate(lists.HARD[name](), threshold, backend=backend)
    assert found.tolist() == oracle.chains(scores_of(name) >= threshold)


@every_backend
@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 17, 47, 49, 513, 700])  # around tiles and blocks
def test_any_number_of_rows(rows: int, backend: str) -> None:
    x = lists.normal(rows, 3)
    assert deduplicate(x, 0.98, backend=backend).tolist() == expected(x, 0.98)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_type(dtype: torch.dtype, backend: str) -> None:
    if reason := _dispatch.why_not("neighbors", backend, Problem(90, None, 0, 5, dtype, kind="components")):
        pytest.skip(reason)
    x = lists.normal(90, 5).to(dtype)
    assert deduplicate(x, 0.9, backend=backend).tolist() == expected(x, 0.9)


@every_backend
def test_the_threshold_is_compared_in_float64(backend: str) -> None:
    """Thresholds that are cosines of the rows themselves, and the next number above: the pair is in, then out."""
    x = lists.normal(40, 30)
    scores = np.triu(oracle.neighbor_scores(x, x), 1)
    for rank in (-1, -2, -5):
        cosine = float(np.sort(scores, axis=None)[rank])
        at, above = (deduplicate(x, t, backend=backend).tolist() for t in (cosine, np.nextafter(cosine, 2.0)))
        assert at == expected(x, cosine) and above == expected(x, np.nextafter(cosine, 2.0))
        assert len(at) < len(above)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_at_threshold_one_no_row_is_kept_twice(dtype: torch.dtype, backend: str) -> None:
    """A copy has cosine 1 exactly, also a copy times a power of two, whatever the rounding of its length."""
    if reason := _dispatch.why_not("neighbors", backend, Problem(180, None, 0, 20, dtype, kind="components")):
        pytest.skip(reason)
    for D in (1, 2, 20, 384):
        x = lists.normal(60, D).to(dtype)
        kept = deduplicate(torch.cat([x, x, x * 4]), 1.0, backend=backend)
        assert int(kept.max()) < 60


@every_backend
def test_a_chain_is_kept_once_however_long_and_in_whatever_order(backend: str) -> None:
    """400 directions on a half circle, each near its neighbours only, in random order: one chain."""
    angle = torch.linspace(0, 3, 400, dtype=torch.float64)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    x = torch.stack([angle.cos(), angle.sin()], 1)[order].float()
    assert deduplicate(x, float(np.cos(0.008)), backend=backend).tolist() == [0]
    assert len(deduplicate(x, float(np.cos(0.007)), backend=backend)) == 400


@every_backend
def test_rows_of_one_chain_are_joined_in_any_order_of_links(backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60)
    for _ in range(20):
        i, j = torch.randint(0, 60, (2, 45), generator=generator)
        links = np.zeros((60, 60), bool)
        links[i, j] = links[j, i] = True
        joined = reference.joined(labels, i, j)
        assert joined.unique().tolist() == oracle.chains(links)
        assert torch.equal(joined[i], joined[j]) and bool((joined <= labels).all())


@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_row_that_is_not_finite_is_named(value: float, backend: str) -> None:
    x = torch.ones(70, 5)
    x[40, 1] = x[50, 2] = value
    with pytest.raises(ValueError, match=f"^deduplicate: x must be finite, got {value} in row 40$"):
        deduplicate(x, 0.5, backend=backend)


@every_backend
def test_strides_do_not_matter(backend: str) -> None:
    base = lists.normal(60, 8)
    for view in (base[::2, ::3], base.T, base[:1].expand(9, 8)):
        assert deduplicate(view, 0.4, backend=backend).tolist() == expected(view.contiguous(), 0.4)


def test_memory_of_the_reference_stays_within_its_formula() -> None:
    x = lists.normal(1500, 8)
    peak, _ = oracle.peak_bytes(lambda: deduplicate(x, 0.95, backend="reference"))
    assert peak <= reference.memory(Problem(1500, None, 0, 8, torch.float32, kind="components"))
