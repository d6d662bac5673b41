"""deduplicate: the first row of every chain, against brute force on float64 scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mrtkern import _dispatch
from mrtkern.ops.neighbors import chains, reference
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.problem import Problem
from tests.tools import lists, oracle
from tests.tools.on_device import IS_IMITATED

CPU = _dispatch.load("neighbors", "cpu")
needs_cpu = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
INTERPRETED = pytest.param("triton", "cpu", marks=pytest.mark.interpret)
RUNS = [
    pytest.param("reference", "cpu"),
    pytest.param("cpu", "cpu", marks=needs_cpu),
    INTERPRETED,
    pytest.param("triton", "cuda", marks=pytest.mark.gpu),
]
every_backend = pytest.mark.parametrize(("backend", "device"), RUNS)


def on_every_backend(name: str, values: Sequence[Any], few: Sequence[Any]) -> Any:
    """An argument's values for every backend; a few of them in the interpreter, which takes seconds for each."""
    runs = [(run, value) for run in RUNS for value in (few if run is INTERPRETED or IS_IMITATED else values)]
    cases = [pytest.param(value, *run.values, marks=run.marks) for run, value in runs]
    return pytest.mark.parametrize((name, "backend", "device"), cases)


def kept(x: torch.Tensor, threshold: float, backend: str, device: str) -> list[int]:
    return deduplicate(x.to(device), threshold, backend=backend).tolist()


def expected(x: torch.Tensor, threshold: float) -> list[int]:
    return oracle.chains(oracle.neighbor_scores(x, x) >= threshold)


@functools.cache
def scores_of(name: str) -> Any:
    x = lists.HARD[name]()
    return oracle.neighbor_scores(x, x)


@on_every_backend("threshold", [-1.0, 0.0, 0.5, 0.9, 1.0], few=[0.9, 1.0])
@pytest.mark.parametrize("name", lists.HARD)
def test_one_row_of_every_chain_is_kept(name: str, threshold: float, backend: str, device: str) -> None:
    assert kept(lists.HARD[name](), threshold, backend, device) == oracle.chains(scores_of(name) >= threshold)


@on_every_backend("rows", [0, 1, 2, 15, 16, 17, 47, 49, 127, 128, 129, 513, 700], few=[0, 1, 2, 127, 128, 129])
def test_any_number_of_rows(rows: int, backend: str, device: str) -> None:
    """Around tiles and blocks."""
    x = lists.normal(rows, 3)
    assert kept(x, 0.98, backend, device) == expected(x, 0.98)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_type(dtype: torch.dtype, backend: str, device: str) -> None:
    if reason := _dispatch.why_not("neighbors", backend, Problem(90, None, 0, 5, dtype, device, kind="components")):
        pytest.skip(reason)
    x = lists.normal(90, 5).to(dtype)
    assert kept(x, 0.9, backend, device) == expected(x, 0.9)


@every_backend
def test_the_threshold_is_compared_in_float64(backend: str, device: str) -> None:
    """Thresholds that are cosines of the rows themselves, and the next number above: the pair is in, then out."""
    x = lists.normal(40, 30)
    scores = np.triu(oracle.neighbor_scores(x, x), 1)
    for rank in (-1, -2, -5):
        cosine = float(np.sort(scores, axis=None)[rank])
        at, above = (kept(x, t, backend, device) for t in (cosine, np.nextafter(cosine, 2.0)))
        assert at == expected(x, cosine) and above == expected(x, np.nextafter(cosine, 2.0))
        assert len(at) < len(above)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_at_threshold_one_no_row_is_kept_twice(dtype: torch.dtype, backend: str, device: str) -> None:
    """A copy has cosine 1 exactly, also a copy times a power of two, whatever the rounding of its length."""
    if reason := _dispatch.why_not("neighbors", backend, Problem(180, None, 0, 20, dtype, device, kind="components")):
        pytest.skip(reason)
    for D in (1, 2, 20, 384):
        x = lists.normal(60, D).to(dtype)
        assert max(kept(torch.cat([x, x, x * 4]), 1.0, backend, device)) < 60


@every_backend
def test_a_chain_is_kept_once_however_long_and_in_whatever_order(backend: str, device: str) -> None:
    """400 directions on a half circle, each near its neighbours only, in random order: one chain."""
    angle = torch.linspace(0, 3, 400, dtype=torch.float64)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    x = torch.stack([angle.cos(), angle.sin()], 1)[order].float()
    assert kept(x, float(np.cos(0.008)), backend, device) == [0]
    assert len(kept(x, float(np.cos(0.007)), backend, device)) == 400


def test_rows_of_one_chain_are_joined_in_any_order_of_links() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60)
    for _ in range(20):
        i, j = torch.randint(0, 60, (2, 45), generator=generator)
        links = np.zeros((60, 60), bool)
        links[i, j] = links[j, i] = True
        joined = chains.joined(labels, i, j)
        assert joined.unique().tolist() == oracle.chains(links)
        assert torch.equal(joined[i], joined[j]) and bool((joined <= labels).all())


@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_row_that_is_not_finite_is_named(value: float, backend: str, device: str) -> None:
    x = torch.ones(70, 5)
    x[40, 1] = x[50, 2] = value
    with pytest.raises(ValueError, match=f"^deduplicate: x must be finite, got {value} in row 40$"):
        kept(x, 0.5, backend, device)


@every_backend
def test_strides_do_not_matter(backend: str, device: str) -> None:
    base = lists.normal(60, 8).to(device)
    for view in (base[::2, ::3], base.T, base[:1].expand(9, 8)):
        assert kept(view, 0.4, backend, device) == expected(view.contiguous().cpu(), 0.4)


def test_memory_of_the_reference_stays_within_its_formula() -> None:
    x = lists.normal(1500, 8)
    peak, _ = oracle.peak_bytes(lambda: deduplicate(x, 0.95, backend="reference"))
    assert peak <= reference.memory(Problem(1500, None, 0, 8, torch.float32, kind="components"))
