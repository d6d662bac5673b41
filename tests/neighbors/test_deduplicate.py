"""deduplicate: the first row of every chain, against brute force on float64 scores; of groups; to so many rows."""

from __future__ import annotations

import functools
import itertools
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


# What they stand for


@every_backend
@pytest.mark.parametrize("name", ["copies", "normal"])
def test_every_row_has_the_kept_row_of_its_chain(name: str, backend: str, device: str) -> None:
    x = torch.cat([lists.normal(40, 3)] * 2) if name == "copies" else lists.normal(150, 3)
    found = deduplicate(x.to(device), 0.97, return_groups=True, backend=backend)
    links = oracle.neighbor_scores(x, x) >= 0.97
    assert found.ids.tolist() == oracle.chains(links)
    representative = found.representative.cpu()
    i, j = np.nonzero(links)
    assert torch.equal(representative[i], representative[j])  # linked rows have the same,
    assert bool((representative <= torch.arange(len(x))).all())  # which is the first of its chain,
    assert sorted(set(representative.tolist())) == found.ids.tolist()  # and kept
    assert found.sizes.tolist() == [int((representative == row).sum()) for row in found.ids.tolist()]


GROUP_SIZES = {"small": [5, 0, 1, 16, 33, 2, 128], "large": [129, 3, 300], "many": [4, 1, 7] * 200, "none": []}


@pytest.mark.parametrize(("backend", "device"), RUNS[:2])
@pytest.mark.parametrize("sizes", GROUP_SIZES)
def test_groups_are_each_deduplicated_by_themselves(sizes: str, backend: str, device: str) -> None:
    offsets = torch.tensor([0, *GROUP_SIZES[sizes]]).cumsum(0)
    x = lists.normal(int(offsets[-1]), 3)
    x[1::7] = x[:-1:7][: len(x[1::7])] * 4
    found = deduplicate(x.to(device), 0.96, offsets=offsets.to(device), return_groups=True, backend=backend)
    ids, sizes_of = [], []
    for first, last in itertools.pairwise(offsets.tolist()):
        if last > first:
            alone = deduplicate(x[first:last], 0.96, return_groups=True, backend="reference")
            ids += (alone.ids + first).tolist()
            sizes_of += alone.sizes.tolist()
            assert torch.equal(found.representative[first:last].cpu(), alone.representative + first)
    assert found.ids.tolist() == ids and found.sizes.tolist() == sizes_of


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_groups_of_any_type_and_stride_cpu(dtype: torch.dtype) -> None:
    base = lists.normal(90, 12).to(dtype)
    if dtype == torch.float64:
        base[3] *= 1e300
    offsets = torch.tensor([0, 20, 50, 90])
    for x in (base, base[:, ::3], torch.cat([base, base])[::2], base.T.contiguous().T):
        found = deduplicate(x, 0.6, offsets=offsets)
        assert torch.equal(found, deduplicate(x, 0.6, offsets=offsets, backend="reference"))
    base[57, 11] = torch.nan
    with pytest.raises(ValueError, match=r"^deduplicate: x must be finite, got nan in row 57$"):
        deduplicate(base, 0.6, offsets=offsets)


# So many rows


def brute_force(x: torch.Tensor, num_rows: int) -> list[int]:
    """Links of all pairs, the largest cosine first, until as many chains are left."""
    scores = oracle.neighbor_scores(x, x)
    i, j = np.triu_indices(len(x), 1)
    labels, left = np.arange(len(x)), len(x)
    for at in np.lexsort((j, i, -scores[i, j])):
        if left == num_rows:
            break
        a, b = sorted((labels[i[at]], labels[j[at]]))
        left -= a != b
        labels[labels == b] = a
    return sorted(set(labels.tolist()))


@every_backend
@pytest.mark.parametrize("name", ["normal", "copies", "equal", "zeros"])
def test_exactly_so_many_rows_are_kept(name: str, backend: str, device: str) -> None:
    x = {
        "normal": lists.normal(60, 3), "copies": torch.cat([lists.normal(20, 3)] * 3), "equal": torch.ones(20, 2),
        "zeros": torch.cat([torch.zeros(6, 3), lists.normal(9, 3)]),
    }[name]  # fmt: skip
    for num_rows in (1, 2, len(x) // 2, len(x) - 1, len(x)):
        found = deduplicate(x.to(device), num_rows=num_rows, return_groups=True, backend=backend)
        assert len(found.ids) == num_rows and int(found.sizes.sum()) == len(x)
        assert found.ids.tolist() == brute_force(x, num_rows)


def test_so_many_rows_are_those_of_the_threshold_that_leaves_them() -> None:
    x = lists.normal(500, 4)
    for threshold in (0.9, 0.97, 0.99):
        found = deduplicate(x, threshold, return_groups=True)
        again = deduplicate(x, num_rows=len(found.ids), return_groups=True)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert deduplicate(torch.zeros(0, 3), num_rows=0).tolist() == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "exactly one of threshold and num_rows must be given, got none of them"),
        ({"threshold": 0.5, "num_rows": 3}, "exactly one of threshold and num_rows must be given, got both"),
        ({"num_rows": 0}, "num_rows must be from 1 to the 5 rows of x, got 0"),
        ({"num_rows": 6}, "num_rows must be from 1 to the 5 rows of x, got 6"),
        ({"num_rows": 2, "offsets": [0, 5]}, "num_rows must come without offsets, got both"),
        ({"threshold": 0.5, "offsets": [0, 4]}, "offsets must "),
        ({"threshold": 1.5}, "threshold must be from -1 to 1, got 1.5"),
    ],
)
def test_what_contradicts_is_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^deduplicate: {sentence}"):
        deduplicate(torch.eye(5), **options)
