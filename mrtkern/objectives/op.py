"""Public `maximize`: other objectives than facility location."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, lattice
from mrtkern._check import Array
from mrtkern.objectives import greedy
from mrtkern.objectives.batches import Batch, Ground, batches
from mrtkern.objectives.kinds import OBJECTIVES, Objective, Options
from mrtkern.ops.facility_location.ground import METRICS
from mrtkern.ops.facility_location.selection import Selection

OP = "maximize"
MOST = 2.0**100  # of given numbers: their sums and products stay finite
ALL_FEATURES = ("feature_based", "max_min")  # they are about rows, not similarities


def maximize(
    objective: str,
    x: Array | None = None,
    k: int | Array | None = None,
    *,
    similarity: Array | None = None,
    offsets: Array | None = None,
    metric: str = "shifted_cosine",
    quality: Array | None = None,
    mask: Array | None = None,
    lam: float = 0.5,
    theta: float = 1.0,
    saturation: float = 0.25,
    group_key: Array | None = None,
    seed: int = 0,
) -> Selection:
    """Keep k rows by greedy on another objective than facility location; `mrtkern.objectives` has the formulas.

        saturated_coverage   rows are covered until they are saturated: coverage by several rows counts
        graph_cut            similar to all rows, not to each other
        feature_based        a bit of every feature: concave over sums
        log_det              volume: a determinantal point process's diversity
        max_min              the farthest points: outliers first
        mmr                  quality against similarity to what is kept, one by one

    Arguments
    ---------
    objective : str
        One of these names.
    x : [N, D], float32, float64, bfloat16 or float16
        Only directions count; for feature_based the values do, and none is negative.
    k : int, or int64 [B]
        Rows to keep. With offsets an int (up to k per group) or int64 [B] (a k above its group is refused).
    similarity : [N, N], symmetric, from 0 to 2**100, optional
        Instead of x; not for feature_based and max_min. For log_det positive semidefinite, as (1 + cos) / 2 are.
    offsets : int64 [B + 1], optional
        Group b owns rows offsets[b]:offsets[b + 1].
    metric : str
        "shifted_cosine" (1 + cos) / 2 or, not for log_det, "clamped_cosine" max(cos, 0).
    quality : [N], optional
        Of each candidate, not negative: multiplies similarities (saturated_coverage, log_det) and features, and is what
        mmr weighs similarity against. graph_cut and max_min take none.
    mask : bool [N], optional
        Who may be picked.
    lam : float, 0 … 1
        graph_cut: what similarity among picks costs, at most 1/2. mmr: the share of quality.
    theta : float
        log_det: how much similarity weighs beside the identity.
    saturation : float, 0 … 1
        saturated_coverage: the part of all its similarities at which a row is saturated.
    group_key : int64 [B], optional
        Names each group to the random draws of skill (None: 0 … B - 1).
    seed : int

    Returns
    -------
    Selection
        value, upper_bound, skill and gains of this objective; owner and share by the similarity. upper_bound and skill
        are NaN for mmr, skill for max_min too; it does not explain itself. No gradient.

    Precision
    ---------
    value, gains and upper_bound are of similarities on the lattice, each of which is off by at most half of
    `lattice.cosine_error(D)`, the whole of it when clamped; the bound of max_min includes that.

    Raises
    ------
    ValueError
        For NaN or infinite features (naming the row), negative features of feature_based, contradictory arguments,
        numbers above 2**100.
    MemoryError
        With the bytes needed when it cannot fit.

    Memory
    ------
    24 bytes a feature of the groups that are worked on together, 64 MiB of rows or one group, and 24 bytes a pair of
    rows for saturated_coverage and where a group has fewer rows than features.

    Devices
    -------
    Tensor operations, on any device. torch.compile breaks its graph here.

    Determinism
    -----------
    The same picks on every machine and for every number of threads; the last bits of log_det's gains and of skill are
    those of the library's logarithms and sums.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    >>> mk.maximize("graph_cut", x, 2).ids
    tensor([1, 2])
    >>> mk.maximize("max_min", x, 2).ids
    tensor([3, 0])

    Source
    ------
    `mrtkern.objectives` cites each.
    """
    _check.one_of(OP, "objective", objective, tuple(OBJECTIVES))
    kind = OBJECTIVES[objective]
    options = _options(objective, lam, theta, saturation)
    ground = _ground(objective, x, similarity, offsets, metric, quality, mask)
    seed = _check.integer(OP, "seed", seed)
    counts = _counts(k, ground, offsets is not None)
    B = len(counts)
    keys = torch.arange(B, dtype=torch.int64, device=counts.device)
    if group_key is not None:
        keys = _check.vector(OP, "group_key", _check.int64(OP, "group_key", group_key), B, "group")
    _fits(kind, ground)
    joined = _Joined(ground, counts)
    for batch in batches(ground, kind.needs_table, kind.needs_features):
        its = counts[batch.numbers]
        found = greedy.run(kind, batch, options, its)
        chance = greedy.chance_value(kind, batch, options, its, seed, keys[batch.numbers])
        joined.add(batch, found, chance)
    return joined.selection(offsets is not None)


def _options(objective: str, lam: float, theta: float, saturation: float) -> Options:
    for name, value, most in (("lam", lam, 1.0), ("theta", theta, math.inf), ("saturation", saturation, 1.0)):
        _check.number(OP, name, value)
        if not (0 <= float(value) <= most) or not math.isfinite(value):
            _check.fail(OP, name, "be finite and not negative" if name == "theta" else "be from 0 to 1", value)
    if objective == "graph_cut" and lam > 0.5:
        _check.fail(OP, "lam", "be at most 0.5 for graph_cut, or picks take away from it", lam)
    return Options(float(lam), float(theta), float(saturation))


def _ground(objective: str, x: Any, similarity: Any, offsets: Any, metric: str, quality: Any, mask: Any) -> Ground:
    """What is picked from; refuses what contradicts."""
    if (x is None) == (similarity is None):
        got = "none of them" if x is None else "both"
        raise ValueError(f"{OP}: exactly one of x and similarity must be given, got {got}")
    name = "x" if similarity is None else "similarity"
    if name == "similarity" and (objective in ALL_FEATURES or offsets is not None):
        other = f"objective {objective!r}" if objective in ALL_FEATURES else "offsets"
        raise ValueError(f"{OP}: {other} must come with x, got similarity")
    if quality is not None and objective in ("graph_cut", "max_min"):
        raise ValueError(f"{OP}: quality must come with another objective, got {objective}")
    if quality is None and objective == "mmr":
        raise ValueError(f"{OP}: objective 'mmr' must come with quality, got none")
    _check.one_of(OP, "metric", metric, METRICS)
    if objective == "log_det" and name == "x" and metric != "shifted_cosine":
        rule = "be 'shifted_cosine' for log_det: clamped cosines are not positive semidefinite"
        _check.fail(OP, "metric", rule, repr(metric))
    rows = _check.floating(OP, name, x if similarity is None else similarity).detach().resolve_neg()
    if rows.ndim != 2 or (name == "similarity" and rows.shape[0] != rows.shape[1]):
        _check.fail(OP, name, "be a matrix [N, D]" if name == "x" else "be a matrix [N, N]", _check.shape(rows))
    N = rows.shape[0]
    ends = torch.tensor([0, N], dtype=torch.int64, device=rows.device)
    if offsets is not None:
        ends = _check.offsets(OP, offsets, rows.device)
        _check.offsets_values(OP, ends, N)
    if mask is not None:
        mask = _check.vector(OP, "mask", mask, N, "candidate")
        if mask.dtype != torch.bool:
            _check.fail(OP, "mask", "be bool", mask.dtype)
    if quality is not None:
        quality = _check.vector(OP, "quality", quality, N, "candidate").detach().double()
        bad = ~((quality >= 0) & (quality <= MOST))
        if bool(bad.any()):
            row = _check.first(bad)
            _check.fail(OP, "quality", "be from 0 to 2**100", f"{float(quality[row])} at row {row}")
    _check.same_device(OP, **{name: rows}, quality=quality, mask=mask)
    if name == "similarity":
        _similarities(rows)
        return Ground(None, rows, ends, metric, quality, mask)
    _check.finite_rows(f"{OP}: x", rows)
    if objective == "feature_based":
        bad = ~((rows >= 0) & (rows <= MOST)).all(dim=1)
        if bool(bad.any()):
            row = _check.first(bad)
            got = f"{float(rows[row].min())} to {float(rows[row].max())} in row {row}"
            _check.fail(OP, "x", "have features from 0 to 2**100 for feature_based", got)
        return Ground(rows, None, ends, metric, quality, mask)
    return Ground(lattice.to_float32(rows), None, ends, metric, quality, mask)


def _similarities(s: Tensor) -> None:
    bad = ~((s >= 0) & (s <= MOST))
    if bool(bad.any()):
        i, j = bad.nonzero()[0].tolist()
        _check.fail(OP, "similarity", "be from 0 to 2**100", f"{float(s[i, j])} at [{i}, {j}]")
    if not torch.equal(s, s.mT):
        i, j = (s != s.mT).nonzero()[0].tolist()
        _check.fail(OP, "similarity", "be symmetric", f"{float(s[i, j])} at [{i}, {j}] and {float(s[j, i])} across")


def _counts(k: Any, ground: Ground, has_groups: bool) -> Tensor:
    """k of each problem, [B]."""
    sizes = ground.offsets.diff()
    if ground.mask is not None:
        total = torch.cat([sizes.new_zeros(1), ground.mask.long().cumsum(0)])
        sizes = total[ground.offsets[1:]] - total[ground.offsets[:-1]]
    if _check.is_array(k):
        counts = _check.vector(OP, "k", _check.int64(OP, "k", k), len(sizes), "group")
    else:
        number = _check.integer(OP, "k", k, "be an int or an int64 tensor")
        if number < 0:
            _check.fail(OP, "k", "be at least 0", number)
        counts = torch.full_like(sizes, number)
        if has_groups:
            return counts.minimum(sizes)
    bad = (counts < 0) | (counts > sizes)
    if bool(bad.any()):
        b = _check.first(bad)
        where = f" in group {b}" if has_groups else ""
        _check.fail(OP, "k", f"be from 0 to the number of candidates {int(sizes[b])}{where}", int(counts[b]))
    return counts


def _fits(kind: type[Objective], ground: Ground) -> None:
    """Refuse what memory cannot hold."""
    n = int(ground.offsets.diff().max()) if len(ground.offsets) > 1 else 0
    D = 0 if ground.x is None else ground.x.shape[1]
    pairs = n * n if kind.needs_table or ground.similarity is not None or n <= D else 0
    name = "x" if ground.x is not None else "similarity"
    _device.fits(f"{OP}: {name}", 24 * (n * D + pairs), ground.offsets.device)


class _Joined:
    """The answers of all batches, in the order of the problems."""

    def __init__(self, ground: Ground, k: Tensor) -> None:
        device, T = k.device, int(ground.offsets[-1])
        self.ends = torch.cat([k.new_zeros(1), k.cumsum(0)])
        self.sizes, total = ground.offsets.diff(), int(self.ends[-1])
        self.ids = torch.empty(total, dtype=torch.int64, device=device)
        self.gains = torch.empty(total, dtype=torch.float64, device=device)
        self.share = torch.empty(total, dtype=torch.float32, device=device)
        self.owner = torch.full((T,), -1, dtype=torch.int64, device=device)
        self.value, self.bound, self.chance = torch.empty((3, len(k)), dtype=torch.float64, device=device)
        self.effective = torch.zeros_like(k)

    def add(self, batch: Batch, found: greedy.Run, chance: Tensor) -> None:
        """Put in its place what a batch found."""
        numbers, is_pick = batch.numbers, found.places >= 0
        steps = torch.arange(found.places.shape[1], dtype=torch.int64, device=numbers.device)
        to = (self.ends[numbers][:, None] + steps)[is_pick]
        ids = batch.rows.gather(1, found.places.clamp(min=0))
        owner = greedy.owners(batch, found.places)
        owned = torch.where(owner >= 0, batch.rows.gather(1, owner.clamp(min=0)), -1)
        self.ids[to], self.gains[to] = ids[is_pick], found.gains[is_pick]
        self.owner[batch.rows[batch.is_row]] = owned[batch.is_row]
        counts = torch.bincount(self.owner[self.owner >= 0], minlength=len(self.owner))
        size = self.sizes[numbers].double()[:, None].expand(found.places.shape)
        self.share[to] = (counts[self.ids[to]] / size[is_pick]).float()
        self.value[numbers], self.bound[numbers], self.chance[numbers] = found.value, found.bound, chance
        self.effective[numbers] = (found.gains > 0).sum(dim=1)

    def selection(self, is_grouped: bool) -> Selection:
        """All of it."""
        has_choice = self.chance < self.bound
        skill = torch.where(has_choice, (self.value - self.chance) / (self.bound - self.chance), 1.0)
        skill = torch.where(torch.isfinite(self.bound), skill, math.nan)
        each = {"value": self.value, "upper_bound": self.bound, "skill": skill, "effective_k": self.effective}
        return Selection(
            ids=self.ids, gains=self.gains, offsets=self.ends if is_grouped else None, owner=self.owner,
            share=self.share, **(each if is_grouped else {name: values[0] for name, values in each.items()}),
        )  # fmt: skip
