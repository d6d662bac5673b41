"""maximize: other objectives than facility location, beside their definitions on all sets and peers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import mrtkern as mk
from mrtkern import lattice
from mrtkern.objectives.batches import BYTES
from mrtkern.objectives.kinds import OBJECTIVES

SUBMODULAR = [name for name, kind in OBJECTIVES.items() if kind.is_submodular]
SHIFTED = (True, False)
EPS = torch.finfo(torch.float64).eps


def similarities(x: Tensor, metric: str = "shifted_cosine") -> Tensor:
    """What rows are on the lattice, [N, N] float64."""
    q, one = lattice.quantise(x), float(lattice.unit_square(x.shape[1]))
    dots = lattice.dots(q, q).double()
    return (one + dots) / (2 * one) if metric == "shifted_cosine" else dots.clamp(min=0) / one


def value(objective: str, x: Tensor, ids: list[int], a: Tensor, **options: Any) -> float:
    """F of a set, from its formula."""
    S, s = torch.tensor(ids, dtype=torch.int64), similarities(x, options.get("metric", "shifted_cosine"))
    if objective == "saturated_coverage":
        pairs = s * a
        return float(torch.minimum(pairs[:, S].sum(1), options.get("saturation", 0.25) * pairs.sum(1)).sum())
    if objective == "graph_cut":
        return float(s[:, S].sum() - options.get("lam", 0.5) * s[S][:, S].sum())
    if objective == "feature_based":
        return float((x.double() * a[:, None])[S].sum(0).sqrt().sum())
    if objective == "log_det":
        inner = torch.eye(len(S), dtype=torch.float64) + options.get("theta", 1.0) * (s * a * a[:, None])[S][:, S]
        return float(inner.logdet()) if len(S) else 0.0
    assert objective == "max_min"
    q = lattice.quantise(x).double() / lattice.radius(x.shape[1])
    apart = torch.cdist(q[S], q[S], compute_mode="donot_use_mm_for_euclid_dist")
    return float(apart[~torch.eye(len(S), dtype=torch.bool)].min()) if len(S) > 1 else 0.0


def rounding(N: int) -> float:
    """Of sums of N * N terms, relative, and of a root and a quotient."""
    return 8 * N * N * EPS


def error(N: int) -> float:
    """Of sums of N * N terms of at most 1 in float64, and of logarithms of what such sums leave."""
    return 64 * rounding(N)


def rows(N: int, D: int, seed: int, is_few: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (N, D), generator=g).float() if is_few else torch.rand(N, D, generator=g)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    N, D = draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 5]))
    x = rows(N, D, draw(st.integers(0, 2**31)), draw(st.booleans()))
    given: dict[str, Any] = {"x": x, "k": draw(st.integers(0, N))}
    objective = draw(st.sampled_from([*SUBMODULAR, "max_min"]))
    given["objective"] = objective
    if objective in ("graph_cut", "saturated_coverage"):
        given["metric"] = draw(st.sampled_from(["shifted_cosine", "clamped_cosine"]))
    if objective not in ("graph_cut", "max_min") and draw(st.booleans()):
        given["quality"] = torch.rand(N, generator=torch.Generator().manual_seed(N)) * 2
    name, values = {"graph_cut": ("lam", [0.0, 0.3, 0.5]), "log_det": ("theta", [0.1, 1.0, 30.0]),
                    "saturated_coverage": ("saturation", [0.1, 0.5, 1.0])}.get(objective, ("", [None]))  # fmt: skip
    if name:
        given[name] = draw(st.sampled_from(values))
    return given


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("metric", "lam", "theta", "saturation") if name in given}


@hypothesis.settings(max_examples=600, deadline=None)
@hypothesis.given(given=problems())
def test_values_are_those_of_the_formula_and_guarantees_hold(given: dict[str, Any]) -> None:
    """Beside the best of all sets of k rows: greedy reaches its part of it, the bound is no less."""
    x, k, objective = given["x"], given["k"], given["objective"]
    a, N = given.get("quality", torch.ones(len(x))).double(), len(x)
    found, options = mk.maximize(**given), options_of(given)
    ids, slack = found.ids.tolist(), error(N) * (1 + N)
    assert len(set(ids)) == k
    assert abs(float(found.value) - value(objective, x, ids, a, **options)) <= slack
    best = max(value(objective, x, list(S), a, **options) for S in itertools.combinations(range(N), k))
    if objective == "max_min":
        assert float(found.value) >= best / 2 - slack
        assert k < 2 or float(found.upper_bound) >= best - slack
        return
    assert float(found.value) >= (1 - 1 / math.e) * best - slack
    assert float(found.upper_bound) >= max(best - slack, float(found.value))
    assert abs(float(found.gains.sum()) - float(found.value)) <= slack
    assert bool((found.gains[1:] <= found.gains[:-1] + slack).all())  # gains never rise


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(given=problems())
def test_every_pick_has_the_largest_gain_the_first_of_equals(given: dict[str, Any]) -> None:
    x, objective = given["x"], given["objective"]
    if objective == "max_min":
        return  # below
    a, options, taken = given.get("quality", torch.ones(len(x))).double(), options_of(given), []
    slack = error(len(x)) * (1 + len(x))
    for j, gain in zip(mk.maximize(**given).ids.tolist(), mk.maximize(**given).gains.tolist(), strict=True):
        before = value(objective, x, taken, a, **options)
        gains = {i: value(objective, x, [*taken, i], a, **options) - before for i in range(len(x)) if i not in taken}
        assert gains[j] >= max(gains.values()) - slack and abs(gains[j] - gain) <= slack
        assert j == min(i for i in gains if (x[i] == x[j]).all() and a[i] == a[j])  # of copies the first
        taken.append(j)


def test_farthest_points_begin_at_the_edge_and_go_on_with_the_farthest() -> None:
    x = torch.randn(80, 5, generator=torch.Generator().manual_seed(2))
    found = mk.maximize("max_min", x, 12)
    q = lattice.quantise(x).double()
    ids = found.ids.tolist()
    assert ids[0] == int((q - q.mean(0)).norm(dim=1).argmax())
    for step in range(1, 12):
        apart = torch.cdist(q, q[ids[:step]], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        assert ids[step] == int(apart.argmax())
        assert float(found.gains[step]) == pytest.approx(float(apart.max()) / lattice.radius(5), rel=rounding(len(x)))
    assert float(found.gains[0]) == 0.0 and float(found.value) == float(found.gains[-1])
    assert 0 < float(found.upper_bound) - 2 * float(found.value) < 2e-3
    near = torch.tensor([[1.0, 0], [1, 1e-5], [1, 2e-5]], dtype=torch.float64)  # one point of the lattice
    assert float(mk.maximize("max_min", near, 2).upper_bound) >= 2e-5


def test_mmr_weighs_quality_against_the_most_similar_pick() -> None:
    x, lam = rows(40, 4, 3), 0.6
    a = torch.rand(40, generator=torch.Generator().manual_seed(4))
    found, s = mk.maximize("mmr", x, 10, quality=a, lam=lam), similarities(x)
    taken: list[int] = []
    for j in found.ids.tolist():
        near = s[:, taken].amax(1) if taken else torch.zeros(40, dtype=torch.float64)
        score = lam * a.double() - (1 - lam) * near
        score[taken] = -math.inf
        assert j == int(score.argmax())
        taken.append(j)
    assert math.isnan(float(found.upper_bound)) and math.isnan(float(found.skill))


def calls() -> dict[str, dict[str, Any]]:
    """One of each objective, with what it must have."""
    a = torch.rand(300, generator=torch.Generator().manual_seed(6))
    return {name: {"quality": a} if name == "mmr" else {} for name in OBJECTIVES}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_groups_are_each_picked_as_by_themselves(objective: str) -> None:
    """However they lie in batches: many sizes, one of them beyond the rows of a batch."""
    sizes = [7, 0, 1, 30, 7, 2, 60, 3, 7, 183]
    x, offsets = rows(300, 40, 5), torch.tensor([0, *sizes]).cumsum(0)
    options = calls()[objective]
    found = mk.maximize(objective, x, 5, offsets=offsets, **options)
    assert found.offsets is not None and found.offsets.diff().tolist() == [min(5, size) for size in sizes]
    for b, (first, last) in enumerate(itertools.pairwise(offsets.tolist())):
        own = {name: given[first:last] for name, given in options.items()}
        alone = mk.maximize(objective, x[first:last], min(5, last - first), group_key=torch.tensor([b]), **own)
        begin, end = found.offsets[b : b + 2].tolist()
        assert torch.equal(found.ids[begin:end], alone.ids + first)
        assert torch.equal(found.share[begin:end], alone.share)
        assert torch.equal(found.owner[first:last], torch.where(alone.owner >= 0, alone.owner + first, -1))
        for name in ("value", "upper_bound", "skill"):
            one, other = float(getattr(found, name)[b]), float(getattr(alone, name))
            assert one == pytest.approx(other, rel=rounding(len(x)), nan_ok=True)


@pytest.mark.parametrize("objective", ["saturated_coverage", "graph_cut", "log_det", "mmr"])
def test_given_similarities_are_those_of_rows(objective: str) -> None:
    x, options = rows(90, 7, 8), {name: a[:90] for name, a in calls()[objective].items()}
    found = mk.maximize(objective, x, 9, **options)
    given = mk.maximize(objective, similarity=similarities(x), k=9, **options)
    assert torch.equal(found.ids, given.ids) and torch.equal(found.owner, given.owner)
    assert float(found.value) == pytest.approx(float(given.value), rel=rounding(len(x)))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_mask_closes_rows_and_owners_are_the_most_similar_kept_rows(objective: str) -> None:
    x, is_open = rows(120, 6, 9), torch.arange(120) % 3 > 0
    options = {name: a[:120] for name, a in calls()[objective].items()}
    found = mk.maximize(objective, x, 8, mask=is_open, **options)
    assert bool(is_open[found.ids].all())
    kept, s = found.ids.sort().values, similarities(x)
    nearest = kept[s[:, kept].argmax(dim=1)]
    nearest[kept] = kept
    assert torch.equal(found.owner, nearest)
    assert found.share.tolist() == pytest.approx([float((nearest == j).float().mean()) for j in found.ids.tolist()])


def test_the_zero_of_skill_is_a_draw_by_chance() -> None:
    """Chance has a skill of 0 on average, greedy more."""
    x = rows(60, 8, 10)
    found = mk.maximize("graph_cut", x, 6)
    s, g = similarities(x), torch.Generator().manual_seed(0)
    drawn = [torch.randperm(60, generator=g)[:6].tolist() for _ in range(300)]
    values = torch.tensor([float(s[:, S].sum() - 0.5 * s[S][:, S].sum()) for S in drawn])
    zero = float(found.value) - float(found.skill) / (1 - float(found.skill)) * float(found.upper_bound - found.value)
    deviation = float(values.std()) / math.sqrt(8)
    assert abs(zero - float(values.mean())) <= 5 * deviation and 0 < float(found.skill) <= 1


def test_large_theta_picks_as_a_determinantal_point_process() -> None:
    """Greedy on log det of the similarities themselves, by Cholesky."""
    x = torch.randn(50, 30, generator=torch.Generator().manual_seed(11))
    s, taken = similarities(x), []
    for _ in range(8):
        left = [j for j in range(50) if j not in taken]
        taken.append(max(left, key=lambda j: float(s[[*taken, j]][:, [*taken, j]].logdet())))
    assert mk.maximize("log_det", x, 8, theta=1e9).ids.tolist() == taken


def test_picks_do_not_depend_on_threads(threads: Any) -> None:
    x, offsets = rows(300, 40, 12), torch.arange(0, 301, 20)
    for objective, options in calls().items():
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(mk.maximize(objective, x, 6, offsets=offsets, **options))
        assert all(torch.equal(found[0].ids, other.ids) for other in found)


def test_a_batch_holds_no_more_than_its_bytes() -> None:
    from mrtkern.objectives import batches

    x, offsets = torch.ones(4000, 400), torch.arange(0, 4001, 40)
    ground = batches.Ground(x, None, offsets, "shifted_cosine", None, None)
    made = list(batches.batches(ground, False, False))
    assert len(made) > 1 or BYTES >= 4000 * 400 * 8
    assert all(batch.points is not None and batch.points.numel() * 8 <= BYTES for batch in made)
    assert sorted(torch.cat([batch.numbers for batch in made]).tolist()) == list(range(100))


X = torch.eye(5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"objective": "coverage"}, "objective must be one of saturated_coverage, graph_cut, .*, got 'coverage'"),
        ({"objective": "graph_cut", "lam": 0.7}, "lam must be at most 0.5 for graph_cut, .*, got 0.7"),
        ({"objective": "mmr"}, "objective 'mmr' must come with quality, got none"),
        ({"objective": "max_min", "quality": torch.ones(5)}, "quality must come with another objective, got max_min"),
        ({"objective": "max_min", "x": None, "similarity": X}, "objective 'max_min' must come with x, got similarity"),
        ({"objective": "log_det", "x": None}, "exactly one of x and similarity must be given, got none of them"),
        ({"objective": "log_det", "similarity": X}, "exactly one of x and similarity must be given, got both"),
        (
            {"objective": "log_det", "x": None, "similarity": X - 2},
            r"similarity must be from 0 to 2\*\*100, got -1.0 at \[0, 0\]",
        ),
        (
            {"objective": "log_det", "x": None, "similarity": X.tril() + 0.1 * X.roll(1, 1).tril()},
            "similarity must be sym",
        ),
        (
            {"objective": "feature_based", "x": -X},
            r"x must have features from 0 to 2\*\*100 for feature_based, got -1.0 to -?0.0 in row 0",
        ),
        ({"objective": "log_det", "metric": "clamped_cosine"}, "metric must be 'shifted_cosine' for log_det: .*"),
        ({"objective": "log_det", "x": None, "similarity": 1 - X}, "similarity must be positive semidefinite for log_"),
        (
            {"objective": "log_det", "quality": X[0].double() * 1e160},
            r"quality must be from 0 to 2\*\*100, got 1e",
        ),
        ({"objective": "graph_cut", "x": None, "similarity": X.double() * 1e308}, "similarity must be from 0 to 2"),
        ({"objective": "feature_based", "x": X.double() * 1e308}, "x must have features from 0 to 2"),
        ({"objective": "log_det", "k": 6}, "k must be from 0 to the number of candidates 5, got 6"),
        ({"objective": "log_det", "k": [1, 4], "offsets": [0, 2, 5]}, "k must be .* candidates 3 in group 1, got 4"),
        ({"objective": "log_det", "theta": -1.0}, "theta must be finite and not negative, got -1.0"),
        ({"objective": "log_det", "x": X / 0}, "x must be finite, got inf in row 0"),
    ],
)
def test_what_contradicts_is_refused_in_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^maximize: {sentence}"):
        mk.maximize(**({"x": X, "k": 2} | given))
