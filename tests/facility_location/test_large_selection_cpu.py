"""Large sets, matrices and graphs on the CPU: every way to hold their pairs picks what the reference picks."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import warnings
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import mrtkern as mk
from mrtkern.ops.facility_location.selection import Selection
from tests.tools import process

C = pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
from mrtkern.ops.facility_location import graphs  # noqa: E402  needs the kernels
from mrtkern.ops.facility_location.cpu import oracles  # noqa: E402  needs the kernels

METRICS = ("shifted_cosine", "clamped_cosine")
WAYS = ("table", "lists", "products")
EXAMPLES = 40 if "MRTKERN_ISA" in os.environ else 500  # the narrower instruction sets follow the widest
LEAST = 1e-3  # of a similarity: what counts as 1 is the largest, and bonuses are refused beyond 2**38 times it


def room(way: str, N: int, M: int, D: int, is_self: bool) -> int:
    """max_memory with which features are held this way."""
    least = oracles.packed_bytes(N, M, D, is_self) + oracles.LOOP_BYTES * N
    return least + {"table": C.TableOracle.bytes(N, M), "lists": C.TableOracle.bytes(N, M) - 1, "products": 0}[way]


def same(found: Selection, expected: Selection, is_bound_exact: bool = True) -> None:
    """Every field is equal; the bound may be looser where not all gains were asked for."""
    for field in dataclasses.fields(Selection):
        mine, theirs = (getattr(selection, field.name) for selection in (found, expected))
        if theirs is None or field.name in ("upper_bound", "skill"):
            continue
        assert torch.equal(mine, theirs), f"{field.name}: {mine} but {theirs}"
    assert bool((found.upper_bound >= expected.upper_bound).all())
    if is_bound_exact:
        assert torch.equal(found.upper_bound, expected.upper_bound)
        assert torch.equal(found.skill, expected.skill)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """A small problem with ties, copies and rows without a direction, and any of the options."""
    N, D = draw(st.integers(1, 70)), draw(st.sampled_from([1, 2, 3, 17]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    few = draw(st.booleans())  # integers: equal gains abound
    make = (
        (lambda *size: torch.randint(-1, 2, size, generator=g).float())
        if few
        else (lambda *size: torch.randn(*size, generator=g))
    )
    x = make(N, D)
    if draw(st.booleans()):
        x = x[torch.randint(0, N, (N,), generator=g)]
    given: dict[str, Any] = {"x": x, "metric": draw(st.sampled_from(METRICS))}
    M = N
    if draw(st.booleans()):
        M = draw(st.integers(1, 50))
        given["targets"] = make(M, D)
    step = draw(st.sampled_from([1, 2]))  # values may be columns of somebody's table
    positive = lambda size: (torch.randint(0, 4, (size * step,), generator=g).float() * 0.37)[::step]  # noqa: E731
    for name, size in (("weight", M), ("quality", N), ("bonus", N)):
        if draw(st.booleans()):
            given[name] = positive(size)
    open_rows = torch.ones(N, dtype=torch.bool)
    if draw(st.booleans()):
        open_rows = given["mask"] = (torch.rand(N * step, generator=g) < 0.7)[::step]
    free = open_rows.clone()
    if draw(st.booleans()):
        given["start"] = torch.randperm(N, generator=g)[: draw(st.integers(0, N))]
        free[given["start"]] = False
    most = int(free.sum())
    given["k"] = draw(st.one_of(st.integers(0, most), st.just(most)))
    if "start" not in given and draw(st.booleans()):
        given["picks"] = open_rows.nonzero()[:, 0][torch.randperm(int(open_rows.sum()), generator=g)][: given["k"]]
    given["fill"] = draw(st.sampled_from(["index", "coverage", "random", "none"]))
    if "picks" not in given and draw(st.booleans()):
        given["stop_gain"], given["stop_fraction"] = draw(st.sampled_from([(0.5, None), (None, 0.1), (1.0, 0.5)]))
    return given


def reference(**given: Any) -> Selection:
    """What is right."""
    return mk.facility_location(**given, backend="reference")


@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(given=problems(), way=st.sampled_from(WAYS))
def test_features_are_picked_as_the_reference_picks(given: dict[str, Any], way: str) -> None:
    x, M = given["x"], len(given.get("targets", given["x"]))
    if not {"targets", "start", "mask", "stop_gain"} & set(given):
        given = given | {"mask": torch.ones(len(x), dtype=torch.bool)}  # or the kernels for groups take it
    memory = room(way, len(x), M, x.shape[1], "targets" not in given)
    found = mk.facility_location(**given, backend="cpu", max_memory=memory)
    same(found, reference(**given), is_bound_exact=way == "table")


def as_matrix(given: dict[str, Any]) -> dict[str, Any]:
    """The same options with a matrix of similarities instead of features."""
    given = dict(given)
    x, targets, metric = given.pop("x"), given.pop("targets", None), given.pop("metric")
    y = x if targets is None else targets
    cosine = mk.similarity(y.double(), x.double())
    s = (1 + cosine) / 2 if metric == "shifted_cosine" else cosine
    s = s.clamp(min=0)
    return given | {"similarity": torch.where(s < LEAST, 0, s)}


@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(
    given=problems(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint16])
)
def test_matrices_are_picked_as_the_reference_picks(given: dict[str, Any], dtype: torch.dtype) -> None:
    given = as_matrix(given)
    if dtype == torch.uint16:
        given["similarity"] = (given["similarity"] * 1000).round().to(torch.int16).view(torch.uint16)
        given["similarity_scale"] = 1000.0
    else:
        given["similarity"] = given["similarity"].to(dtype)
    if given["k"] % 2:
        given["similarity"] = given["similarity"].T.contiguous().T  # columns are adjacent
    same(mk.facility_location(**given, backend="cpu"), reference(**given))


@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(given=problems(), density=st.sampled_from([0.0, 0.1, 0.6]))
def test_graphs_are_picked_as_the_reference_picks(given: dict[str, Any], density: float) -> None:
    given = as_matrix(given)
    s = given.pop("similarity").float()
    keep = torch.rand(s.shape, generator=torch.Generator().manual_seed(given["k"])) < density
    with warnings.catch_warnings():  # torch calls the layout a beta
        warnings.simplefilter("ignore", UserWarning)
        csr = (s * keep).to_sparse_csr()
        parts = (csr.crow_indices(), csr.col_indices(), csr.values())
        strided = (torch.stack([part, part], dim=1)[:, 0] for part in parts)
        given["graph"] = torch.sparse_csr_tensor(*strided, s.shape)
    same(mk.facility_location(**given, backend="cpu"), reference(**given))


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        ([1, 2, 3], "have crow_indices from 0 to its 2 values, got 1 to 3"),
        ([0, 1, 9], "have crow_indices from 0 to its 2 values, got 0 to 9"),
        ([0, 3, 2], "have ascending crow_indices, got a decrease after row 1"),
    ],
)
def test_a_graph_whose_rows_lie_outside_is_refused(ends: list[int], sentence: str) -> None:
    """Torch takes any."""
    values = torch.tensor([0.5, 0.7])
    with warnings.catch_warnings():  # torch calls the layout a beta
        warnings.simplefilter("ignore", UserWarning)
        graph = torch.sparse_csr_tensor(torch.tensor(ends), torch.tensor([1, 0]), values, (2, 5))
    with pytest.raises(ValueError, match=f"facility_location: graph must {sentence}"):
        mk.facility_location(graph=graph, k=1)


def dense_of(nearest: Any, N: int) -> Tensor:
    """What lists of neighbours say of all pairs."""
    s = torch.eye(N)
    for i, (ids, scores) in enumerate(zip(nearest.ids.tolist(), nearest.scores.tolist(), strict=True)):
        for j, score in zip(ids, scores, strict=True):
            s[i, j] = max(score, 0.0)
    return s


def test_neighbours_are_a_graph_whose_diagonal_is_one() -> None:
    x = torch.randn(90, 7, generator=torch.Generator().manual_seed(3))
    nearest = mk.neighbors(x, 9)
    expected = mk.facility_location(similarity=dense_of(nearest, 90), k=12, backend="reference")
    same(mk.facility_location(graph=nearest, k=12), expected)


def mixture(N: int, D: int = 24, seed: int = 1) -> Tensor:
    """Rows of a few dozen clusters of different sizes."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, D, generator=g)
    which = (40 * torch.rand(N, generator=g) ** 2).long()
    return centres[which] + 0.8 * torch.randn(N, D, generator=g)


@pytest.mark.parametrize("way", WAYS)
def test_more_rows_than_a_block_on_the_cpu(way: str) -> None:
    """Blocks and squares of pairs end in the middle of a panel; some candidates and rows are left over."""
    x, given = mixture(1100), {"k": 60, "metric": METRICS[0], "quality": torch.rand(1100) + 0.5}
    found = mk.facility_location(x, **given, max_memory=room(way, 1100, 1100, 24, True), backend="cpu", mask=ones(1100))
    same(found, reference(x=x, **given), is_bound_exact=way == "table")
    y = mixture(1500, seed=2)
    found = mk.facility_location(x, **given, targets=y, max_memory=room(way, 1100, 1500, 24, False), backend="cpu")
    same(found, reference(x=x, **given, targets=y), is_bound_exact=way == "table")


def ones(N: int) -> Tensor:
    """A mask that forbids nothing, and keeps the kernels for groups away."""
    return torch.ones(N, dtype=torch.bool)


@pytest.mark.parametrize("way", WAYS)
def test_same_bits_for_every_number_of_threads_large_cpu(way: str, threads: Any) -> None:
    x = mixture(1300)
    found = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        found.append(mk.facility_location(x, 40, mask=ones(1300), max_memory=room(way, 1300, 1300, 24, True)))
    for other in found[1:]:
        same(other, found[0])


def test_groups_of_any_size_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones by themselves, small ones together, answers in their order."""
    sizes = torch.tensor([3, 50, 0, 7, 60, 61, 1, 20])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    x, k = mixture(int(sizes.sum())), torch.tensor([2, 9, 0, 7, 10, 0, 1, 5])
    picks = mk.facility_location(x, k, offsets=offsets, backend="reference").ids.flip(0)
    group = torch.repeat_interleave(k)
    picks = picks.flip(0)[torch.argsort(group, stable=True)]
    values = {"weight": torch.rand(len(x)), "quality": torch.rand(len(x)), "bonus": torch.rand(len(x)) * 0.1}
    mask = (torch.arange(len(x)) % 5 > 0) | (x[:, 0] > 0)
    for given in ({}, values, {"fill": "coverage", **values}, {"picks": picks}, {"mask": mask, **values}):
        limit = int(k.max()) if "mask" in given else k
        expected = mk.facility_location(x, limit, offsets=offsets, backend="reference", **given)
        same(mk.facility_location(x, limit, offsets=offsets, backend="cpu", **given), expected)
        with monkeypatch.context() as patch:
            patch.setattr(C, "LARGEST_GROUP", 40)
            same(mk.facility_location(x, limit, offsets=offsets, backend="cpu", **given), expected)


def test_the_bound_holds_and_greedy_reaches_its_share_on_the_cpu() -> None:
    """Against the best of all subsets, alone and among those that hold a start set."""
    for seed in range(40):
        x = torch.randn(10, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        similarity = (1 + mk.similarity(x)) / 2
        for start in (None, torch.tensor([4, 7])):
            held = set() if start is None else set(start.tolist())
            sets = [s for s in itertools.combinations(range(10), 3 + len(held)) if held <= set(s)]
            best = max(float(similarity[:, list(s)].amax(dim=1).sum()) for s in sets)
            for way in WAYS:
                memory = room(way, 10, 10, 3, True)
                found = mk.facility_location(x, 3, start=start, mask=ones(10), max_memory=memory, backend="cpu")
                assert float(found.upper_bound) >= best
                assert start is not None or float(found.value) >= (1 - math.exp(-1)) * best


def test_sums_over_many_rows_are_exact_on_the_cpu() -> None:
    """Twenty thousand copies of a row and as many of its opposite: a value beyond what float32 or int32 can count."""
    x = torch.cat([torch.ones(20_000, 2), -torch.ones(20_000, 2)])
    found = mk.facility_location(x, 2, max_memory=room("products", 40_000, 40_000, 2, True), backend="cpu")
    assert found.ids.tolist() == [0, 20_000]
    assert float(found.value) == pytest.approx(40_000, abs=float(found.upper_bound - found.value))
    assert found.share.tolist() == [0.5, 0.5]
    assert found.gains.tolist() == sorted(found.gains.tolist(), reverse=True)


def test_what_has_no_room_is_refused_with_the_number_on_the_cpu() -> None:
    x = torch.zeros(1, 1).expand(5000, 4)
    with pytest.raises(MemoryError, match=r"facility_location: x must leave room for [0-9]+ bytes, got 1000 bytes"):
        mk.facility_location(x, 2, max_memory=1000)
    with pytest.raises(MemoryError, match=r"facility_location: similarity must leave room for [0-9]+ bytes, got 1000"):
        mk.facility_location(similarity=torch.eye(30), k=2, max_memory=1000)


@pytest.mark.parametrize("row", [0, 4500, 4999])
def test_a_row_that_is_not_finite_is_named_on_the_cpu(row: int) -> None:
    x = mixture(5000)
    x[row, 3] = torch.nan
    with pytest.raises(ValueError, match=f"facility_location: x must be finite, got nan in row {row}"):
        mk.facility_location(x, 3)
    with pytest.raises(ValueError, match=f"facility_location: targets must be finite, got nan in row {row}"):
        mk.facility_location(mixture(50), 3, targets=x)


def graph_of(N: int, edges: int) -> Any:
    """Lists of different neighbours."""
    ids = torch.arange(edges) * (N // edges) + torch.randint(0, N // edges, (N, edges))
    return mk.Neighbors(ids, torch.rand(N, edges), N)


def a_matrix(is_weighed: bool) -> Any:
    """A call on similarities."""
    given = {"similarity": torch.rand(4000, 4000), "weight": torch.rand(4000) if is_weighed else None}
    mk.facility_location(similarity=torch.rand(50, 50), k=2, weight=torch.rand(50))
    return lambda: mk.facility_location(**given, k=300)


def a_graph(is_csr: bool) -> Any:
    """A call on a graph that has to be copied: its indices are narrow, or neighbours are missing."""
    graph = graph_of(40_000, 32)
    mk.facility_location(graph=graph_of(100, 4), k=2)
    graph.ids[::7, -1], graph.scores[::7, -1] = -1, -torch.inf
    csr = graph.csr()
    narrow = torch.sparse_csr_tensor(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape)
    return lambda: mk.facility_location(graph=narrow if is_csr else graph, k=500)


@process.needs_peak
@pytest.mark.parametrize("is_other", [False, True])
@pytest.mark.parametrize("prepare", [a_matrix, a_graph])
def test_memory_of_matrices_and_graphs_is_what_the_docstring_says(prepare: Any, is_other: bool) -> None:
    stated = {
        a_matrix: 64 * 4000 + 2 * 4000 * 4000 + oracles.MATRIX_BYTES,
        a_graph: 64 * 40_000 + oracles.EDGE_BYTES * 40_000 * 32 + 48 * 80_000 + oracles.GRAPH_BYTES,
    }
    assert stated[prepare] / 3 <= process.peak(prepare, is_other) <= stated[prepare] + 2**20


@pytest.mark.parametrize("at_once", [1, 7])
def test_a_graph_is_looked_at_in_parts(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(60, 5)
    graph.ids[::3, 2:], graph.scores[::3, 2:] = -1, -torch.inf  # rows of other lengths
    graph.ids[10:20], graph.scores[10:20] = -1, -torch.inf  # and without edges
    whole = mk.facility_location(graph=graph, k=9)
    double = graph.csr()
    double.col_indices()[-1] = double.col_indices()[-2]
    i, j = 59, int(double.col_indices()[-1])
    monkeypatch.setattr(graphs, "EDGES_AT_ONCE", at_once)
    ends = {1: [1, 3], 7: [2, 3]}[at_once]  # a part ends before the row that would make it too long, but has one row
    assert [behind for _, behind, _ in graphs.parts(torch.tensor([0, 7, 7, 8]))] == ends
    found = mk.facility_location(graph=graph, k=9)
    assert torch.equal(found.ids, whole.ids) and torch.equal(found.owner, whole.owner)
    assert torch.equal(found.owner, mk.facility_location(graph=graph, k=9, backend="reference").owner)
    with pytest.raises(ValueError, match=rf"name each candidate of a row once, got \[{i}, {j}\] twice"):
        mk.facility_location(graph=double, k=9)


def test_neighbors_of_other_types_are_read_as_what_they_are() -> None:
    ids, scores = torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[0.9, 0.1], [0.9, 0.3], [0.1, 0.3]])
    for graph in (mk.Neighbors(ids.int(), scores, 3), mk.Neighbors(ids, scores.double(), 3)):
        assert mk.facility_location(graph=graph, k=2).ids.tolist() == [1, 2]
    with pytest.raises(
        ValueError, match=r"graph must have ids and scores of the same shape \[M, k\], got ids \[3, 2\]"
    ):
        mk.facility_location(graph=mk.Neighbors(ids, scores[:, :1], 3), k=2)


# Size


def far_apart(values: torch.Tensor) -> torch.Tensor:
    """The same values, rows 2^20 bytes apart: the last of 2,100 begins beyond 2^31."""
    base = torch.zeros(len(values), 2**20 // values.element_size(), dtype=values.dtype)
    base[:, : values.shape[1]] = values
    return base[:, : values.shape[1]]


@pytest.mark.full
@pytest.mark.parametrize("given", ["x", "targets", "similarity", "graph"])
def test_bytes_beyond_32_bits_are_addressed_by_strides_large_cpu(given: str) -> None:
    x = mixture(2100)[:, :8]
    near, far = {"x": x}, {"x": far_apart(x)}
    if given == "targets":
        near, far = {"x": x[:50], "targets": x}, {"x": x[:50], "targets": far["x"]}
    elif given == "similarity":
        s = torch.rand(2100, 40, generator=torch.Generator().manual_seed(0))
        near, far = {"similarity": s}, {"similarity": far_apart(s)}
    elif given == "graph":
        lists = mk.neighbors(x, 5, metric="clamped_cosine")
        near = {"graph": lists}
        far = {"graph": mk.Neighbors(far_apart(lists.ids), far_apart(lists.scores), 2100)}
    a, b = (mk.facility_location(**each, k=6) for each in (near, far))
    same(a, b)


def test_more_edges_than_32_bits_count_are_refused_with_the_number_on_the_cpu() -> None:
    many = 2**40  # no machine has the petabyte that copies would take
    ids, scores = torch.arange(64).expand(many, 64), torch.ones(1, 1).expand(many, 64)  # 2^46 edges of 64 numbers
    with pytest.raises(MemoryError, match=f"facility_location: graph must leave room for {graphs.COPY_BYTES * 2**46} "):
        mk.facility_location(graph=mk.Neighbors(ids, scores, many), k=3)
