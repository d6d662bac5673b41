"""Budgets, caps, least numbers, samples and coverage that suffices: what they admit, what they guarantee."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import mrtkern as mk

pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
from tests.facility_location.test_large_selection_cpu import (
    WAYS,
    as_matrix,
    mixture,
    ones,
    problems,
    reference,
    room,
    same,
)

EXAMPLES = 40 if "MRTKERN_ISA" in os.environ else 300  # the narrower instruction sets follow the widest
STOPS = ("stop_gain", "stop_fraction", "stop_coverage")
KINDS = ("cap", "caps", "least", "cost", "cost and cap", "stochastic", "coverage")


def open_rows(given: dict[str, Any]) -> Tensor:
    """Who may be picked."""
    is_open = given.get("mask", torch.ones(len(given["x"]), dtype=torch.bool)).clone()
    if "start" in given:
        is_open[given["start"]] = False
    return is_open


@st.composite
def limited(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """One of the problems, with limits that it can meet."""
    given = draw(problems())
    given.pop("picks", None)
    N, is_open = len(given["x"]), open_rows(given)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if kind == "stochastic":
        return given | {
            "method": kind,
            "epsilon": draw(st.sampled_from([0.5, 0.1, 0.001])),
            "seed": draw(st.integers(0, 99)),
        }
    if kind == "coverage":
        given["stop_coverage"] = draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]))
    if kind.startswith("cost"):
        given["cost"] = torch.randint(0, draw(st.sampled_from([2, 6])), (N,), generator=g)
        given["budget"] = draw(st.integers(0, 12))
    if kind in ("coverage", "cost") and draw(st.booleans()):
        return given | {"k": None}
    if kind in ("coverage", "cost"):
        return given
    classes = draw(st.integers(1, 4))
    label = given["group"] = torch.randint(0, classes, (N,), generator=g)
    counts = torch.bincount(label[is_open], minlength=classes)
    cap = (
        torch.full((classes,), draw(st.integers(1, 5)))
        if kind == "cap"
        else torch.randint(0, 5, (classes,), generator=g)
    )
    if kind == "cap":
        given["group"], given["group_cap"] = label * 7 - 3, int(cap[0])  # names of any kind
    else:
        given["group_cap"] = cap
    most = int(counts.minimum(cap).sum())
    given["k"] = draw(st.integers(0, most))
    if kind == "least":
        least = (counts.minimum(cap) * torch.rand(classes, generator=g)).round().long()
        given["group_min"], given["k"] = least, max(given["k"], int(least.sum()))
        given = {name: value for name, value in given.items() if name not in STOPS}
        given["fill"] = "index" if given["fill"] == "none" else given["fill"]
    return given


def assert_within(given: dict[str, Any], found: mk.Selection) -> None:
    """The picks are within what was asked for."""
    ids = found.ids[len(given.get("start", [])) :]
    if "cost" in given:
        assert int(given["cost"][ids].sum()) <= given["budget"]
    if "group" in given:
        names, label = given["group"].unique(return_inverse=True)
        cap, least = given.get("group_cap", len(label)), given.get("group_min", 0)
        for number, name in enumerate(names.tolist()):
            count = int((label[ids] == number).sum())
            assert count <= (cap if isinstance(cap, int) else int(cap[name]))
            assert count >= (least if isinstance(least, int) else int(least[name]))


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(data=st.data())
def test_features_within_limits_are_picked_on_the_cpu_as_the_reference_picks(kind: str, data: st.DataObject) -> None:
    given, way = data.draw(limited(kind)), data.draw(st.sampled_from(WAYS))
    x, M = given["x"], len(given.get("targets", given["x"]))
    found = mk.facility_location(
        **given, backend="cpu", max_memory=room(way, len(x), M, x.shape[1], "targets" not in given)
    )
    assert_within(given, found)
    same(found, reference(**given), is_bound_exact=way == "table" and kind != "stochastic")


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=EXAMPLES // 3, deadline=None)
@hypothesis.given(data=st.data())
def test_matrices_within_limits_are_picked_on_the_cpu_as_the_reference_picks(kind: str, data: st.DataObject) -> None:
    given = as_matrix(data.draw(limited(kind)))
    same(mk.facility_location(**given, backend="cpu"), reference(**given), is_bound_exact=kind != "stochastic")


GUARANTEE = {"cap": 0.5, "caps": 0.5, "least": 0.5, "cost": (1 - 1 / math.e) / 2}


@pytest.mark.parametrize("kind", GUARANTEE)
@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(data=st.data())
def test_greedy_within_limits_keeps_its_guarantee_and_its_bound(kind: str, data: st.DataObject) -> None:
    """Beside the best of all sets within the limits, by enumeration in float64."""
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    N, M, classes = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    s = torch.rand(M, N, generator=g).pow(data.draw(st.sampled_from([0.3, 1.0, 4.0])))
    label, k = torch.randint(0, classes, (N,), generator=g), data.draw(st.integers(0, N))
    given: dict[str, Any] = {"similarity": s, "similarity_scale": 1.0}
    cap, least = torch.full((classes,), N), torch.zeros(classes, dtype=torch.int64)
    cost, budget = torch.randint(0, 5, (N,), generator=g), data.draw(st.integers(0, 10))
    if kind == "cost":
        given |= {"cost": cost, "budget": budget}
    else:
        cap = torch.randint(1, 3, (classes,), generator=g) if kind != "least" else cap
        counts = torch.bincount(label, minlength=classes)
        if kind == "least":
            least = (counts * torch.rand(classes, generator=g)).long()
            given["group_min"] = least
        k = max(min(k, int(counts.minimum(cap).sum())), int(least.sum()))
        given |= {"group": label, "group_cap": cap}
    best = 0.0
    for ids in itertools.chain.from_iterable(itertools.combinations(range(N), size) for size in range(k + 1)):
        chosen = torch.tensor(ids, dtype=torch.int64)
        count = torch.bincount(label[chosen], minlength=classes)
        if kind == "cost" and int(cost[chosen].sum()) > budget:
            continue
        if kind != "cost" and (bool((count > cap).any()) or bool((count < least).any())):
            continue
        best = max(best, float(s[:, chosen].double().amax(dim=1).sum()) if ids else 0.0)
    found = mk.facility_location(k=k, **given)
    slack = M * 0.53 / 32767
    assert float(found.value) >= GUARANTEE[kind] * best - slack
    assert float(found.upper_bound) >= best - 1e-12


def test_stochastic_greedy_keeps_its_guarantee_on_average_on_the_cpu() -> None:
    x, epsilon = mixture(600), 0.2
    greedy = mk.facility_location(x, 30, mask=ones(600))
    values = [float(mk.facility_location(x, 30, method="stochastic", epsilon=epsilon, seed=s).value) for s in range(20)]
    assert sum(values) / 20 >= (1 - 1 / math.e - epsilon) * float(greedy.upper_bound)
    assert sum(values) / 20 >= 0.97 * float(greedy.value)  # far better than what is guaranteed
    assert len(set(values)) > 10  # the seed decides


@pytest.mark.parametrize("way", WAYS)
def test_limited_selections_have_the_same_bits_for_every_number_of_threads_cpu(way: str, threads: Any) -> None:
    x, g = mixture(1300), torch.Generator().manual_seed(0)
    label, cost = torch.randint(0, 5, (1300,), generator=g), torch.randint(1, 50, (1300,), generator=g)
    memory = room(way, 1300, 1300, 24, True)
    for options in (
        {"k": 40, "group": label, "group_cap": 9, "group_min": 7},
        {"cost": cost, "budget": 400},
        {"k": 40, "method": "stochastic", "seed": 3},
    ):
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(mk.facility_location(x, max_memory=memory, **options))
        for other in found[1:]:
            same(other, found[0])


def test_groups_within_limits_are_each_picked_as_by_itself_on_the_cpu() -> None:
    g = torch.Generator().manual_seed(4)
    sizes = [5, 0, 30, 12]
    x, offsets = torch.randn(sum(sizes), 6, generator=g), torch.tensor([0, *sizes]).cumsum(0)
    label, cost = torch.randint(0, 3, (sum(sizes),), generator=g), torch.randint(1, 9, (sum(sizes),), generator=g)
    budget = torch.tensor([9, 3, 20, 0])
    cases: list[dict[str, Any]] = [
        {"k": 4, "group": label, "group_cap": torch.tensor([1, 2, 1])},
        {"cost": cost, "budget": budget},
        {"k": 3, "method": "stochastic", "group_key": torch.tensor([5, 6, 7, 8])},
    ]
    for options in cases:
        together = mk.facility_location(x, offsets=offsets, **options)
        same(together, reference(x=x, offsets=offsets, **options), is_bound_exact="method" not in options)
        assert together.offsets is not None
        for b, (first, last) in enumerate(itertools.pairwise(offsets.tolist())):
            own = {name: value[first:last] if name in ("group", "cost") else value for name, value in options.items()}
            if "budget" in own:
                own["budget"] = int(budget[b])
            if "group_key" in own:
                own["group_key"] = own["group_key"][b : b + 1]
            if "k" in own:
                admitted = torch.bincount(label[first:last], minlength=3).clamp(max=torch.tensor([1, 2, 1])).sum()
                own["k"] = min(own["k"], int(admitted) if "group" in own else last - first)
            alone = mk.facility_location(x[first:last], mask=ones(last - first), **own)
            begin, end = together.offsets[b : b + 2].tolist()
            assert torch.equal(together.ids[begin:end], alone.ids + first)
            assert float(together.value[b]) == float(alone.value)


@pytest.mark.parametrize("options", [{"method": "stochastic", "seed": 5}, {"budget": 300}], ids=["sampled", "budget"])
def test_a_limited_call_that_was_stopped_goes_on_where_it_was(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrtkern.ops.facility_location import large

    x, file = mixture(700), tmp_path / "picks.json"
    if "budget" in options:
        options = options | {"cost": torch.arange(700) % 13 + 1}
    whole = mk.facility_location(x, 40, **options)
    monkeypatch.setattr(large, "SAVE_EVERY", 0.0)
    saved: list[dict[Path, str]] = []
    write = large.checkpoint.File.write
    monkeypatch.setattr(
        large.checkpoint.File, "write",
        lambda self, picks: (write(self, picks), saved.append({p: p.read_text() for p in tmp_path.iterdir()})),
    )  # fmt: skip
    same(mk.facility_location(x, 40, checkpoint=file, **options), whole)
    monkeypatch.undo()
    assert len(saved) > 4
    for texts in saved[:: max(len(saved) // 8, 1)]:
        for path in tmp_path.iterdir():
            path.unlink()
        for path, text in texts.items():
            path.write_text(text)
        same(mk.facility_location(x, 40, checkpoint=file, **options), whole)
    with pytest.raises(ValueError, match="checkpoint must be of the same data, options, k and version"):
        mk.facility_location(x, 40, checkpoint=file, mask=ones(700))


def test_enough_coverage_is_the_mean_similarity_to_the_nearest_kept_row() -> None:
    x, reached = mixture(400), 0.85
    found = mk.facility_location(x, stop_coverage=reached)
    nearest = ((1 + mk.similarity(x.double(), x[found.ids].double())) / 2).amax(dim=1)
    before = ((1 + mk.similarity(x.double(), x[found.ids[:-1]].double())) / 2).amax(dim=1)
    assert float(before.mean()) < reached <= float(nearest.mean()) + 1e-4
    assert len(mk.facility_location(x, 5, stop_coverage=1.0).ids) == 5  # as far as k goes


X = torch.eye(6)
LABEL = torch.tensor([0, 0, 0, 1, 1, 2])
CAPPED: dict[str, Any] = {"group": LABEL, "group_cap": 1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 2, "cost": LABEL}, "cost must come with budget, got none"),
        ({"k": 2, "budget": 3}, "budget must come with cost, got none"),
        ({"k": 2, "group": LABEL}, "group must come with group_cap or group_min, got none"),
        ({"k": 2, "group_cap": 1}, "group_cap or group_min must come with group, got none"),
        ({"k": 2, "cost": LABEL - 1, "budget": 3}, "cost must be at least 0, got -1 at 0"),
        ({"k": 2, "cost": LABEL, "budget": -3}, "budget must be at least 0, got -3"),
        ({"k": 2, "cost": LABEL + 2**61, "budget": 3}, r"cost must have a sum below 2\*\*62"),
        ({"k": 2, "cost": LABEL[:5], "budget": 3}, "cost must have one entry per candidate"),
        ({"k": 2, "cost": LABEL.float(), "budget": 3}, "cost must be int64, got torch.float32"),
        ({"k": 4} | CAPPED, r"k must be from 0 to the number that group_cap admits, 3, got 4 \(1 short\)"),
        ({"k": 4, "group": LABEL, "group_cap": torch.tensor([1, 1])}, "group must be from 0 to 1, got 2 at row 5"),
        ({"k": 4, "group": LABEL * 10, "group_min": 2}, r"group_min .* got 2 for class 20, which has 1 \(1 short\)"),
        ({"k": 2, "group": LABEL, "group_min": 1}, r"k must be at least the sum of group_min 3, got 2 \(1 short\)"),
        ({"k": 3, "group_min": 2} | CAPPED, "group_min must be at most group_cap, got 2 and 1 of class 0"),
        ({"k": 3, "group_min": 1, "fill": "none"} | CAPPED, "group_min must come with k and without stops and fill"),
        ({"k": 3, "cost": LABEL, "budget": 1, "group_min": 1} | CAPPED, "group_min must come without cost, got both"),
        ({"k": 3, "picks": [0, 1, 2]} | CAPPED, "picks must come without cost and group, got one of them"),
        ({"k": 3, "method": "stochastic"} | CAPPED, "method 'stochastic' must come without picks, cost and group"),
        ({"k": 3, "method": "greedy"}, "method must be one of lazy, stochastic, got 'greedy'"),
        ({"k": 3, "method": "stochastic", "epsilon": 0.0}, "epsilon must lie between 0 and 1, got 0.0"),
        ({"stop_coverage": 1.5}, "stop_coverage must be from 0 to 1, got 1.5"),
    ],
)
def test_limits_that_cannot_be_met_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^facility_location: {sentence}"):
        mk.facility_location(X, **options)


def test_without_k_and_without_an_end_k_is_asked_for() -> None:
    with pytest.raises(TypeError, match="k must be an int or an int64 tensor, got NoneType"):
        mk.facility_location(X)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nothing_to_pick_from_is_no_selection(backend: str) -> None:
    nothing, none = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    cases: list[dict[str, Any]] = [
        {"polish": True}, {"method": "stochastic"}, {"cost": none, "budget": 3}, {"group": none, "group_cap": 1}, {},
    ]  # fmt: skip
    for options in cases:
        for ends in ([0], [0, 0], [0, 0, 0]):
            found = mk.facility_location(nothing, 0, offsets=torch.tensor(ends), backend=backend, **options)
            assert found.ids.tolist() == [] and len(found.value) == len(ends) - 1
        assert mk.facility_location(nothing, 0, backend=backend, **options).ids.tolist() == []
