"""Swaps after greedy: they never lower the value, keep the limits, and end where no swap helps."""

from __future__ import annotations

import itertools
import os
import warnings
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import mrtkern as mk
from mrtkern import _dispatch
from mrtkern.ops.facility_location.ground import Features
from mrtkern.ops.facility_location.problem import Problem

pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
from tests.facility_location.test_large_selection_cpu import WAYS, as_matrix, mixture, reference, room, same
from tests.facility_location.test_limits import assert_within, limited

EXAMPLES = 15 if "MRTKERN_ISA" in os.environ else 60  # the definition tries every swap of a batch: seconds
KINDS = ("cap", "caps", "least", "cost", "cost and cap", "stochastic", "coverage")


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=EXAMPLES // 3, deadline=None)
@hypothesis.given(data=st.data())
def test_polished_features_are_on_the_cpu_what_the_reference_polishes(kind: str, data: st.DataObject) -> None:
    given, way = data.draw(limited(kind)), data.draw(st.sampled_from(WAYS))
    given["polish"] = data.draw(st.sampled_from([True, 1, 3]))
    x, M = given["x"], len(given.get("targets", given["x"]))
    found = mk.facility_location(
        **given, backend="cpu", max_memory=room(way, len(x), M, x.shape[1], "targets" not in given)
    )
    assert_within(given, found)
    same(found, reference(**given), is_bound_exact=way == "table" and kind != "stochastic")
    greedy = mk.facility_location(**given | {"polish": False}, backend="cpu")
    assert float(found.value) >= float(greedy.value) and float(found.upper_bound) >= float(found.value)


@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(data=st.data(), is_graph=st.booleans())
def test_polished_matrices_and_graphs_are_on_the_cpu_what_the_reference_polishes(
    data: st.DataObject, is_graph: bool
) -> None:
    given = as_matrix(data.draw(limited(data.draw(st.sampled_from(KINDS)))))
    given["polish"] = True
    if is_graph:
        s = given.pop("similarity").float()
        keep = torch.rand(s.shape, generator=torch.Generator().manual_seed(len(s))) < 0.4
        with warnings.catch_warnings():  # torch calls the layout a beta
            warnings.simplefilter("ignore", UserWarning)
            given["graph"] = (s * keep).to_sparse_csr()
    same(mk.facility_location(**given, backend="cpu"), reference(**given), is_bound_exact="method" not in given)


def value(s: Tensor, ids: list[int]) -> float:
    return float(s[:, ids].amax(dim=1).sum()) if ids else 0.0


def test_no_swap_helps_where_it_ends() -> None:
    """Beside all swaps of float64 similarities; and it is better than greedy here."""
    x = mixture(150, D=6)
    s = ((1 + mk.similarity(x.double())) / 2).float().double()
    found = mk.facility_location(similarity=s, k=12, polish=True)
    greedy = mk.facility_location(similarity=s, k=12)
    kept, slack = found.ids.tolist(), 2 * len(s) * 0.53 / 32767
    best = max(
        value(s, [*kept[:m], j, *kept[m + 1 :]])
        for j, m in itertools.product(range(len(s)), range(12))
        if j not in kept
    )
    assert best <= value(s, kept) + slack
    assert value(s, kept) > value(s, greedy.ids.tolist()) + slack
    assert bool((found.gains[:-1] >= found.gains[1:]).all()) and float(found.gains.sum()) == float(found.value)


def test_at_most_so_many_swaps_are_made() -> None:
    x = mixture(300)
    greedy, ends = mk.facility_location(x, 20), mk.facility_location(x, 20, polish=True)
    values = [float(mk.facility_location(x, 20, polish=swaps).value) for swaps in range(5)]
    assert values[0] == float(greedy.value) and values == sorted(values) and values[1] < values[4] <= float(ends.value)
    changed = [len(set(greedy.ids.tolist()) - set(mk.facility_location(x, 20, polish=n).ids.tolist())) for n in (1, 2)]
    assert changed[0] == 1 and changed[1] <= 2


def test_given_picks_are_polished_and_a_start_stays() -> None:
    x, g = mixture(200), torch.Generator().manual_seed(0)
    chance = torch.randperm(200, generator=g)[:10]
    found = mk.facility_location(x, 10, picks=chance, polish=True)
    assert float(found.value) > float(mk.facility_location(x, 10, picks=chance).value)
    assert float(found.value) >= 0.995 * float(mk.facility_location(x, 10).value)  # as good from a bad beginning
    start = chance[:4]
    kept = mk.facility_location(x, 5, start=start, polish=True)
    assert torch.equal(kept.ids[:4], start) and len(kept.ids) == 9
    assert float(kept.value) >= float(mk.facility_location(x, 5, start=start).value)


@pytest.mark.parametrize("way", WAYS)
def test_polished_selections_have_the_same_bits_for_every_number_of_threads_cpu(way: str, threads: Any) -> None:
    x, found = mixture(1100), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(mk.facility_location(x, 30, polish=True, max_memory=room(way, 1100, 1100, 24, True)))
    for other in found[1:]:
        same(other, found[0])


def test_groups_are_each_polished_by_themselves() -> None:
    x, offsets = mixture(90, D=5), torch.tensor([0, 40, 40, 90])
    together = mk.facility_location(x, 6, offsets=offsets, polish=True)
    assert together.offsets is not None
    for first, last, b in ((0, 40, 0), (40, 90, 2)):
        alone = mk.facility_location(x[first:last], 6, polish=True)
        begin, end = together.offsets[b : b + 2].tolist()
        assert torch.equal(together.ids[begin:end], alone.ids + first) and together.value[b] == alone.value


def test_swaps_are_as_good_as_those_of_fasterpam() -> None:
    """The same objective: distances are 1 - similarity, their sum falls as F rises."""
    kmedoids = pytest.importorskip("kmedoids")
    x = mixture(400)
    s = ((1 + mk.similarity(x.double())) / 2).numpy()
    ours = mk.facility_location(similarity=s, k=25, polish=True)
    theirs = kmedoids.fasterpam(1 - s, 25, init="build", random_state=0)
    assert float(ours.value) >= (400 - float(theirs.loss)) * (1 - 2e-3)


def test_what_cannot_swap_says_so() -> None:
    with pytest.raises(ValueError, match=r"^facility_location: polish must be a bool or at least 0 swaps, got -2"):
        mk.facility_location(torch.eye(4), 2, polish=-2)
    with pytest.raises(TypeError, match=r"^facility_location: polish must be a bool or an int, got str"):
        mk.facility_location(torch.eye(4), 2, polish="yes")  # type: ignore[arg-type]
    problem = Problem(Features, 9, 3, 1, torch.float32, "cuda", 9, options=("polish",), capability=(9, 0))
    reason = _dispatch.why_not("facility_location", "triton", problem)
    assert reason is not None
