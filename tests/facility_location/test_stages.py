"""Several selections of the same rows; why a row was kept, how selections differ, where the curve bends."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import mrtkern as mk
from mrtkern import lattice
from tests.facility_location.test_large_selection_cpu import mixture, ones, same

X = mixture(200)


def same_ids(found: list[mk.Selection], expected: list[torch.Tensor]) -> None:
    assert [stage.ids.tolist() for stage in found] == [ids.tolist() for ids in expected]


def grounds() -> dict[str, dict[str, Any]]:
    s = (1 + mk.similarity(X)) / 2
    return {"x": {"x": X}, "similarity": {"similarity": s}, "graph": {"graph": mk.neighbors(X, 20)}}


@pytest.mark.parametrize("ground", ["x", "similarity", "graph"])
def test_nested_stages_are_prefixes_of_one_run(ground: str) -> None:
    given = grounds()[ground]
    whole = mk.facility_location(**given, k=30)
    stages = mk.select_stages(**given, k=[0, 3, 3, 11, 30])
    same_ids(stages, [whole.ids[:k] for k in (0, 3, 3, 11, 30)])
    for k, stage in zip((3, 11, 30), (stages[1], *stages[3:]), strict=True):
        same(stage, mk.facility_location(**given, k=k))


@pytest.mark.parametrize("ground", ["x", "similarity", "graph"])
def test_disjoint_stages_are_the_best_of_what_is_left(ground: str) -> None:
    given = grounds()[ground]
    stages = mk.select_stages(**given, k=[10, 20, 5], disjoint=True, mask=torch.arange(200) % 5 > 0)
    is_open = torch.arange(200) % 5 > 0
    for k, stage in zip((10, 20, 5), stages, strict=True):
        assert stage.ids.tolist() == mk.facility_location(**given, k=k, mask=is_open).ids.tolist()
        assert bool(is_open[stage.ids].all())
        is_open[stage.ids] = False
    assert (
        len(torch.cat([stage.ids for stage in mk.select_stages(**given, k=[100, 100], disjoint=True)]).unique()) == 200
    )


def test_stages_go_on_from_a_start_and_within_limits() -> None:
    start, label = torch.tensor([7, 9]), torch.arange(200) % 4
    stages = mk.select_stages(X, [4, 8], start=start, group=label, group_cap=2)
    assert [len(stage.ids) for stage in stages] == [6, 10]
    assert torch.equal(stages[1].ids[:6], stages[0].ids) and torch.equal(stages[0].ids[:2], start)
    assert torch.bincount(label[stages[1].ids[2:]]).tolist() == [2, 2, 2, 2]  # start does not count
    same_ids(mk.select_stages(X.numpy(), [2], mask=np.ones(200, dtype=bool)), [mk.facility_location(X, 2).ids])
    assert mk.select_stages(X, []) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": [3, 2]}, r"k must never fall where stages are nested, got \[3, 2\]"),
        ({"k": [2], "offsets": [0, 200]}, "offsets must be left to facility_location, got one"),
        ({"k": [2], "picks": [0, 1]}, "picks must be left to facility_location, got one"),
        ({"k": [2], "checkpoint": "f"}, "checkpoint must be left to facility_location, got one"),
        ({"k": [2], "polish": True}, "polish must be left to facility_location where stages are nested, got one"),
        ({"k": [2], "start": [0], "disjoint": True}, "start must come with nested stages, got disjoint ones"),
    ],
)
def test_stages_that_contradict_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^select_stages: {sentence}"):
        mk.select_stages(X, **options)
    with pytest.raises(ValueError, match=r"^facility_location: k must be from 0 to the number of candidates 100"):
        mk.select_stages(X, [100, 101], disjoint=True)


@pytest.mark.parametrize("k", [3, None, "34"])
def test_one_number_is_no_sequence_of_sizes(k: Any) -> None:
    with pytest.raises(TypeError, match=f"^select_stages: k must be a sequence of ints, got {type(k).__name__}"):
        mk.select_stages(X, k)


# Why


def assert_explains(found: mk.Selection, x: torch.Tensor, first: int = 0) -> None:
    """Beside the definition, in float64 on all pairs of one problem whose rows begin at `first`."""
    s = (1 + mk.similarity(x.double())) / 2
    error = lattice.cosine_error(x.shape[1]) / 2 + 1 / lattice.STEPS  # of a pair
    kept = [j for j in found.ids.tolist() if first <= j < first + len(x)]
    for position, j in enumerate(kept):
        told, others = found.explain(j), [other for other in kept if other != j]
        assert (told.id, told.position) == (j, position)
        assert told.gain == float(found.gains[found.ids == j])
        assert torch.equal(told.rows, (found.owner == j).nonzero()[:, 0]) and j in told.rows.tolist()
        local = torch.tensor(others) - first
        value, without = (float(s[:, ids].amax(dim=1).sum()) for ids in (torch.tensor(kept) - first, local))
        assert abs(told.loss - (value - without)) <= 2 * len(x) * error
        assert told.loss <= told.gain + 1e-9 or told.gain == 0.0  # gains never rise; rows of a start have none
        nearest = s[told.rows - first][:, local]
        best = nearest[torch.arange(len(nearest)), [others.index(row) for row in told.second.tolist()]]
        assert bool((best >= nearest.amax(dim=1) - 2 * error).all())


def test_a_kept_row_is_explained() -> None:
    x = mixture(60, D=6)
    assert_explains(mk.facility_location(x, 7), x)
    assert_explains(mk.facility_location(x, 4, start=torch.tensor([3, 5])), x)
    alone = mk.facility_location(x, 1).explain(int(mk.facility_location(x, 1).ids[0]))
    assert alone.loss == alone.gain and alone.second.tolist() == [-1] * 60


def test_a_kept_row_of_a_group_is_explained_within_its_group() -> None:
    x, offsets = mixture(90, D=6), torch.tensor([0, 30, 30, 90])
    found = mk.facility_location(x, 5, offsets=offsets)
    for first, last in ((0, 30), (30, 90)):
        assert_explains(found, x[first:last], first)


def test_a_weighed_selection_and_one_of_targets_are_explained_in_their_own_values() -> None:
    g = torch.Generator().manual_seed(1)
    y, weight, quality, bonus = mixture(40, seed=3), *(torch.rand(n, generator=g) for n in (40, 200, 200))
    given: dict[str, Any] = {"targets": y, "weight": weight, "quality": quality, "bonus": bonus}
    found = mk.facility_location(X, 6, **given)
    for j in found.ids.tolist():
        others = found.ids[found.ids != j]
        without = mk.facility_location(X, 5, picks=others, **given)
        assert found.explain(j).loss == float(found.value) - float(without.value)


def test_a_copy_says_that_it_has_no_rows() -> None:
    found = mk.facility_location(X, 3)
    for other in (copy.copy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(other.ids, found.ids)
        with pytest.raises(
            ValueError,
            match=r"^Selection\.explain: selection must be one that facility_location returned",
        ):
            other.explain(int(found.ids[0]))
    outside = next(j for j in range(200) if j not in found.ids.tolist())
    with pytest.raises(ValueError, match=f"^Selection.explain: id must be a kept row, got {outside}"):
        found.explain(outside)


def test_selections_are_compared_by_their_ids_and_values() -> None:
    here, there = mk.facility_location(X, 10), mk.facility_location(X, 6, mask=torch.arange(200) % 2 > 0)
    told = here.compare(there)
    ours, theirs = set(here.ids.tolist()), set(there.ids.tolist())
    assert told.both.tolist() == sorted(ours & theirs)
    assert (told.only_here.tolist(), told.only_there.tolist()) == (sorted(ours - theirs), sorted(theirs - ours))
    assert told.jaccard == len(ours & theirs) / len(ours | theirs)
    assert told.value_ratio == float(here.value) / float(there.value) > 1
    assert here.compare(here)[3:] == (1.0, 1.0)
    nothing = mk.facility_location(X, 0)
    assert nothing.compare(nothing)[3:] == (1.0, 1.0)
    assert here.compare(nothing).value_ratio == math.inf and nothing.compare(here).value_ratio == 0.0
    with pytest.raises(ValueError, match=r"^Selection\.compare: other must be of the same 200 rows, got one of 20"):
        here.compare(mk.facility_location(X[:20], 2))
    with pytest.raises(TypeError, match=r"^Selection\.compare: other must be a Selection, got list"):
        here.compare([1])  # type: ignore[arg-type]


def test_the_elbow_is_where_the_curve_lies_furthest_above_its_chord() -> None:
    found = mk.facility_location(mixture(300), 60)
    curve = found.gains.cumsum(0) / found.gains.sum()
    above = [float(curve[t]) - (t + 1) / 60 for t in range(60)]
    assert found.elbow() == above.index(max(above)) + 1 < 20
    modes = torch.eye(5).repeat(20, 1)
    assert mk.facility_location(modes, 30, metric="clamped_cosine").elbow() == 5  # after them nothing gains
    assert mk.facility_location(X, 0).elbow() == 0
    begun = mk.facility_location(X, 12, start=torch.arange(50))
    above = [float(begun.gains[50 : 51 + t].sum() / begun.gains.sum()) - (t + 1) / 12 for t in range(12)]
    assert begun.elbow() == above.index(max(above)) + 1  # rows of a start are no picks
    with pytest.raises(ValueError, match=r"^Selection\.elbow: selection must be of one problem, got groups"):
        mk.facility_location(X, 2, offsets=torch.tensor([0, 100, 200])).elbow()


def test_a_mask_of_ones_explains_the_same() -> None:
    plain, masked = mk.facility_location(X, 5), mk.facility_location(X, 5, mask=ones(200))
    a, b = plain.explain(int(plain.ids[2])), masked.explain(int(masked.ids[2]))
    assert a[:4] == b[:4] and torch.equal(a.rows, b.rows) and torch.equal(a.second, b.second)
