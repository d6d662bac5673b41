"""Large sets, matrices and graphs on the CPU: every way to hold their pairs picks what the reference picks."""

from __future__ import annotations

import dataclasses
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

C = pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
from mrtkern.ops.facility_location.cpu import large, oracles  # noqa: E402  needs the kernels

METRICS = ("shifted_cosine", "clamped_cosine")
WAYS = ("table", "lists", "products")
EXAMPLES = 100 if "MRTKERN_ISA" in os.environ else 500  # the narrower instruction sets follow the widest
LEAST = 1e-3  # of a similarity: what counts as 1 is the largest, and bonuses are refused beyond 2**38 times it


def room(way: str, N: int, M: int, D: int, is_self: bool) -> int:
    """max_memory with which features are held this way."""
    least = oracles.packed_bytes(N, M, D, is_self) + large.LOOP_BYTES * N
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
    positive = lambda size: torch.randint(0, 4, (size,), generator=g).float() * 0.37  # noqa: E731
    for name, size in (("weight", M), ("quality", N), ("bonus", N)):
        if draw(st.booleans()):
            given[name] = positive(size)
    open_rows = torch.ones(N, dtype=torch.bool)
    if draw(st.booleans()):
        open_rows = given["mask"] = torch.rand(N, generator=g) < 0.7
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
        given["graph"] = (s * keep).to_sparse_csr()
    same(mk.facility_location(**given, backend="cpu"), reference(**given))


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
