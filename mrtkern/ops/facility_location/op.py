"""Public `facility_location`: checks, dispatch, torch.library registration, and the way from steps to users' units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mrtkern import _check, _dispatch, lattice
from mrtkern.ops.facility_location import selection
from mrtkern.ops.facility_location.problem import FILLS, METRICS, Inputs, Problem
from mrtkern.ops.facility_location.selection import Picks, Selection

OP = "facility_location"

torch.library.define(
    "mrtkern::facility_location",
    "(str kind, Tensor x, Tensor offsets, Tensor k, bool clamp_k, Tensor? targets, Tensor? weight, Tensor? quality, "
    "Tensor? bonus, Tensor? start, Tensor? given, Tensor? mask, Tensor? group_key, str metric, float? scale, "
    "str fill, int seed, int first_row, str subject, str? backend) "
    "-> (Tensor ids, Tensor gains, Tensor offsets, Tensor value, Tensor bound, Tensor random, Tensor effective_k, "
    "Tensor owner, Tensor share, Tensor maximum, Tensor unit)",
)


def _launch(
    kind: str, x: Tensor, offsets: Tensor, k: Tensor, clamp_k: bool, targets: Tensor | None, weight: Tensor | None,
    quality: Tensor | None, bonus: Tensor | None, start: Tensor | None, given: Tensor | None, mask: Tensor | None,
    group_key: Tensor | None, metric: str, scale: float | None, fill: str, seed: int, first_row: int, subject: str,
    backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Every check that reads values, the choice of the backend and the call, below torch.compile.

    On a GPU a value that is read is waited for: all of them are read together, where nothing depends on another, so
    that a plain selection waits once before the kernel and once, for what it found, after it.
    """
    candidates = x.shape[1] if kind == "similarity" else x.shape[0]
    facts = _check.Facts()
    _check.offsets_values(OP, offsets, candidates, facts=facts)
    weight = _not_negative("weight", weight, facts)
    quality = _not_negative("quality", quality, facts)
    bonus = _not_negative("bonus", bonus, facts)
    scale = _matrix_scale(x, scale) if kind == "similarity" else 1.0
    if start is not None:
        _start_values(start, candidates)
    if start is not None or mask is not None:
        facts.read()
    room = _room(offsets, start, mask)
    k = torch.minimum(k, room) if clamp_k else _fitting(k, room, kind, facts)
    group_key = torch.arange(k.shape[0], dtype=torch.int64, device=k.device) if group_key is None else group_key
    sizes = torch.cat([offsets.new_zeros(1), offsets[1:] - offsets[:-1]])  # never empty
    largest, total = facts.read(sizes.max(), k.sum())
    inputs = Inputs(
        kind, x, offsets, k, targets, weight, quality, bonus, start, given, mask, group_key, metric, scale, fill,
        seed, first_row, subject, largest, total,
    )  # fmt: skip
    facts = _check.Facts()
    if given is not None:
        _given_values(given - first_row, offsets, k, total, mask, facts)
    covered = x.shape[0] if targets is None else targets.shape[0]
    maximum = selection.maximum(
        weight, quality, offsets if kind == "grouped" else offsets.new_tensor([0, covered]), offsets
    )
    _ranges(quality, bonus, offsets, maximum * scale, facts)
    facts.read()
    picks = _dispatch.run(OP, backend, Problem.of(inputs), subject.split(": ")[0]).forward(inputs)
    return (*picks, maximum, torch.full((), scale, dtype=torch.float64, device=x.device))


torch.library.impl("mrtkern::facility_location", ("cpu", "cuda"), _launch)


@torch.library.register_fake("mrtkern::facility_location")
def _fake(
    kind: str, x: Tensor, offsets: Tensor, k: Tensor, clamp_k: bool, targets: Tensor | None, weight: Tensor | None,
    quality: Tensor | None, *rest: object,
) -> tuple[Tensor, ...]:  # fmt: skip
    total, B = torch.library.get_ctx().new_dynamic_size(), k.shape[0]
    ids, gains, ends = offsets.new_empty(total), offsets.new_empty(total), offsets.new_empty(B + 1)
    each = [offsets.new_empty(B) for _ in range(4)]
    owner = offsets.new_empty((x if targets is None else targets).shape[0])
    share, unit = x.new_empty(total, dtype=torch.float32), x.new_empty((), dtype=torch.float64)
    maximum = unit.new_empty(()) if weight is None and quality is None else unit.new_empty(B)
    return (ids, gains, ends, *each, owner, share, maximum, unit)


def _not_negative(name: str, given: Tensor | None, facts: _check.Facts) -> Tensor | None:
    """One entry per row in float32, which the kernels read."""
    if given is None:
        return None
    value = given.float()
    bad = ~(torch.isfinite(value) & (value >= 0))

    def sentence() -> None:
        row = _check.first(bad)
        got = float(given[row])
        rule = "be finite in float32" if 0 < got < math.inf else "be finite and not negative"
        _check.fail(OP, name, rule, f"{got} at row {row}")

    facts.refuse(bad, sentence)
    return value


def _ranges(quality: Tensor | None, bonus: Tensor | None, offsets: Tensor, unit: Tensor, facts: _check.Facts) -> None:
    """Refuse what float32 coefficients and 64-bit sums of steps cannot hold; `unit`: the largest pair of a problem."""
    if quality is not None:
        largest = selection.largest(quality, offsets)
        is_extreme = (largest > 0) & ((largest < 2.0**-100) | (largest > 2.0**100))
        rule = "have its largest value in a group from 2**-100 to 2**100"
        facts.refuse(is_extreme, lambda: _check.fail(OP, "quality", rule, float(largest[_check.first(is_extreme)])))
    if bonus is not None:
        total = torch.cat([bonus.new_zeros(1, dtype=torch.float64), bonus.double().cumsum(0)])
        sums = total[offsets[1:]] - total[offsets[:-1]]
        is_large = sums > unit * 2.0**38  # steps stay below 2**53 then, exact in float64

        def sentence() -> None:
            b = _check.first(is_large)
            rule = f"sum to at most 2**38 times the largest pair {float(unit.expand_as(sums)[b]):.3g} in a group"
            _check.fail(OP, "bonus", rule, float(sums[b]))

        facts.refuse(is_large, sentence)


def _matrix_scale(s: Tensor, scale: float | None) -> float:
    """The largest entry of a similarity matrix, or the scale that was given; refuses what is not a similarity."""
    bad = ~(torch.isfinite(s) & (s >= 0))
    if bool(bad.any()):
        m, n = divmod(int(bad.flatten().int().argmax()), s.shape[1])
        mends = "shift it to (1 + s) / 2 or clamp it at 0"
        _check.fail(OP, "similarity", f"be finite and not negative ({mends})", f"{float(s[m, n])} at [{m}, {n}]")
    largest = float(s.max()) if s.numel() else 1.0
    if scale is not None and not (scale > 0 and largest <= scale):
        _check.fail(OP, "similarity_scale", f"be at least the largest similarity {largest}", scale)
    return scale or largest or 1.0


def _start_values(start: Tensor, candidates: int) -> None:
    outside = start[(start < 0) | (start >= candidates)]
    if outside.numel():
        _check.fail(OP, "start", f"hold row numbers from 0 to {candidates - 1}", int(outside[0]))
    if start.unique().numel() != start.numel():
        _check.fail(
            OP, "start", "name each row once", f"{start.numel()} entries with {start.unique().numel()} different ones"
        )


def _given_values(
    given: Tensor, offsets: Tensor, k: Tensor, total: int, mask: Tensor | None, facts: _check.Facts
) -> None:
    """Picks to evaluate must lie in their groups, each once; `total`: the sum of k."""
    if given.shape[0] != total:
        _check.fail(OP, "given", f"hold the sum of k = {total} row numbers", given.shape[0])
    group = torch.repeat_interleave(k, output_size=total)
    outside = (given < offsets[group]) | (given >= offsets[group + 1])
    ascending = given.sort().values

    def sentence() -> None:
        i = _check.first(outside)
        _check.fail(OP, "given", f"stay inside its group {int(group[i])}", f"row {int(given[i])}")

    facts.refuse(outside, sentence)
    different = "{} entries with {} different ones"
    facts.refuse(
        ascending[1:] == ascending[:-1],
        lambda: _check.fail(OP, "given", "name each row once", different.format(given.numel(), given.unique().numel())),
    )
    if mask is not None:
        facts.read()
        facts.refuse(
            ~mask[given], lambda: _check.fail(OP, "given", "respect mask", f"row {int(given[~mask[given]][0])}")
        )


def _room(offsets: Tensor, start: Tensor | None, mask: Tensor | None) -> Tensor:
    """How many rows each problem can still pick, [B]."""
    if start is None and mask is None:
        return offsets[1:] - offsets[:-1]
    is_open = offsets.new_ones(int(offsets[-1])) if mask is None else mask.long()
    if start is not None:
        is_open[start] = 0
    total = torch.cat([is_open.new_zeros(1), is_open.cumsum(0)])
    return total[offsets[1:]] - total[offsets[:-1]]


def _fitting(k: Tensor, room: Tensor, kind: str, facts: _check.Facts) -> Tensor:
    bad = (k < 0) | (k > room)

    def sentence() -> None:
        b = _check.first(bad)
        where = f" in group {b}" if kind == "grouped" else ""
        _check.fail(OP, "k", f"be from 0 to the number of candidates {int(room[b])}{where}", int(k[b]))

    facts.refuse(bad, sentence)
    return k


def _sides(
    x: Tensor | None, similarity: Tensor | None, targets: Tensor | None, offsets: Tensor | None
) -> tuple[str, Tensor]:
    """Which kind of problem this is, and its matrix; refuses contradictory arguments."""
    if (x is None) == (similarity is None):
        raise ValueError(
            f"{OP}: exactly one of x and similarity must be given, got {'neither' if x is None else 'both'}"
        )
    matrix = x if x is not None else similarity
    name = "x" if x is not None else "similarity"
    _check.floating(OP, name, matrix)
    assert matrix is not None
    if matrix.ndim != 2:
        _check.fail(OP, name, "be a matrix", _check.shape(matrix))
    if offsets is not None and (x is None or targets is not None):
        raise ValueError(
            f"{OP}: offsets must come with x and without targets, got {'targets' if x is not None else 'similarity'}"
        )
    if targets is not None:
        _check.floating(OP, "targets", targets)
        if x is None or targets.ndim != 2 or targets.shape[1] != matrix.shape[1]:
            _check.fail(
                OP,
                "targets",
                "be a matrix with the features of x",
                f"{_check.shape(targets)} for {name} {_check.shape(matrix)}",
            )
    if offsets is not None:
        _check.offsets(OP, offsets, matrix.device)
    return ("similarity" if x is None else "global" if offsets is None else "grouped"), matrix


def _entries(name: str, value: Tensor | None, size: int, like: str, dtype: torch.dtype) -> Tensor | None:
    """One real entry per row, of `dtype` where that is no floating one, or None."""
    if value is None:
        return None
    _check.vector(OP, name, value, size, like)
    if value.is_complex():
        _check.fail(OP, name, "be real", value.dtype)
    if dtype in (torch.int64, torch.bool) and value.dtype != dtype:
        _check.fail(OP, name, f"be {str(dtype).removeprefix('torch.')}", value.dtype)
    return value.detach().resolve_neg()


def facility_location(
    x: Tensor | None = None,
    k: int | Tensor | None = None,
    *,
    similarity: Tensor | None = None,
    similarity_scale: float | None = None,
    targets: Tensor | None = None,
    offsets: Tensor | None = None,
    metric: str = "shifted_cosine",
    weight: Tensor | None = None,
    quality: Tensor | None = None,
    bonus: Tensor | None = None,
    start: Tensor | None = None,
    given: Tensor | None = None,
    mask: Tensor | None = None,
    fill: str = "index",
    group_key: Tensor | None = None,
    seed: int = 0,
    backend: str | None = None,
) -> Selection:
    """Keep k rows that cover all rows best, by exact greedy on integers.

    F(S) = sum_{j in S} bonus_j + sum_i weight_i max_{j in S} quality_j s_ij; one row at a time, always the largest
    gain, equal gains to the lower row number. `mrtkern.ops.facility_location` has the arithmetic.

    x [N, D] float32, float64, bfloat16, float16: rows are covered and are the candidates; only their directions count.
    k: rows to keep. With offsets an int (up to k per group) or int64 [B] (a k above its group is refused).
    similarity [M, N], not negative, instead of x: columns are candidates; similarity_scale counts as 1 (None: its
    maximum).
    targets [M, D]: other rows to cover than x. offsets [B + 1] int64: group b owns rows offsets[b]:offsets[b + 1].
    metric: "shifted_cosine" (1 + cos) / 2 or "clamped_cosine" max(cos, 0). mask [N] bool: who may be picked.
    weight [M] of rows to cover; quality [N] multiplies a candidate's similarities; bonus [N] is added when it is
    picked, in the units of F. All finite and not negative, rounded to float32.
    start int64: rows kept already; they come first and do not count in k.
    given int64 [sum of k]: evaluate these picks instead.
    fill: what follows once no candidate gains: "index" the lowest row numbers, "coverage" greedy on the unweighted
    objective, then at random, "random" by the hash of (seed, group_key, position), "none" fewer ids.
    group_key [B] int64 (None: 0 … B - 1) names each group to the random numbers, so that batching does not matter.

    Returns a Selection. No gradient. Deterministic: the same bits for every backend, thread count and instruction set.
    Error: |value - F| <= rows * max(weight) * max(quality) * (0.52 / 32767 + e), e half of `lattice.cosine_error(D)` or
    the whole of it when clamped, and half a step per bonus; upper_bound includes it. Memory: cpu, per thread,
    2 N D + 2 N**2 + 96 D + 90 N bytes, N and D rounded up by at most 32; cuda, 16 bytes per group, and where the
    largest exceeds shared memory, per multiprocessor 2 N D + 2 N**2 + 47 N + 8192 bytes, N and D rounded up by at most
    16; reference 64 bytes per pair, N**2 or M N pairs of the largest group.
    Beyond 4,096 rows one ground set runs through the reference, as it does with similarity, targets, start or mask; so
    does the whole call when one of its groups has more. 8,000 rows take 4.1 GB.
    Raises ValueError for contradictory arguments, NaN or infinite features (naming the row), offsets that do not cover
    x; TypeError for what is no tensor and a k that is neither int nor tensor; MemoryError with the bytes needed when it
    cannot fit. Source: arXiv 2606.00544, section 4; upper_bound: Leskovec et al., KDD 2007.
    """
    return solve(
        x, k, similarity, similarity_scale, targets, offsets, metric, weight, quality, bonus, start, given, mask, fill,
        group_key, seed, backend,
    )  # fmt: skip


def solve(
    x: Tensor | None, k: int | Tensor | None, similarity: Tensor | None, similarity_scale: float | None,
    targets: Tensor | None, offsets: Tensor | None, metric: str, weight: Tensor | None, quality: Tensor | None,
    bonus: Tensor | None, start: Tensor | None, given: Tensor | None, mask: Tensor | None, fill: str,
    group_key: Tensor | None, seed: int, backend: str | None, first_row: int = 0, subject: str = f"{OP}: x",
) -> Selection:  # fmt: skip
    """`facility_location` on rows that the caller counts from `first_row` and calls `subject`."""
    kind, matrix = _sides(x, similarity, targets, offsets)
    op, name_of_x = subject.split(": ")
    _check.one_of(op, "metric", metric, METRICS)
    _check.one_of(op, "fill", fill, FILLS)
    _dispatch.check(op, backend)
    seed = _check.integer(op, "seed", seed)
    if similarity_scale is not None:
        _check.number(op, "similarity_scale", similarity_scale)
    for name, rows in (("start", start), ("given", given)):
        if rows is not None:
            _check.int64(OP, name, rows)
    if start is not None and (kind == "grouped" or given is not None):
        raise ValueError(f"{OP}: start must come without offsets and given, got both")
    N = matrix.shape[1] if kind == "similarity" else matrix.shape[0]
    M = N if kind == "grouped" else (matrix if targets is None else targets).shape[0]
    groups = torch.tensor([0, N], dtype=torch.int64, device=matrix.device) if offsets is None else offsets
    B = groups.shape[0] - 1
    weight = _entries("weight", weight, M, "row to cover", torch.float32)
    quality = _entries("quality", quality, N, "candidate", torch.float32)
    bonus = _entries("bonus", bonus, N, "candidate", torch.float32)
    mask = _entries("mask", mask, N, "candidate", torch.bool)
    group_key = _entries("group_key", group_key, B, "group", torch.int64)
    counts, clamp_k = _counts(k, B, kind, matrix.device)
    _check.same_device(
        op, **{"similarity" if kind == "similarity" else name_of_x: matrix}, targets=targets, k=counts, weight=weight,
        quality=quality, bonus=bonus, start=start, given=given, mask=mask, group_key=group_key,
    )  # fmt: skip
    rows = matrix.detach().resolve_neg()  # kernels read the memory: a lazy minus sign must be in it
    rows = rows if kind == "similarity" else lattice.to_float32(rows)
    others = None if targets is None else lattice.to_float32(targets.detach().resolve_neg())
    *fields, maximum, unit = torch.ops.mrtkern.facility_location(
        kind, rows, groups, counts, clamp_k, others, weight, quality, bonus, start, given, mask, group_key, metric,
        similarity_scale, fill, seed, first_row, subject, backend,
    )  # fmt: skip
    sizes = groups[1:] - groups[:-1]
    pair_error = 0.0 if kind == "similarity" else selection.feature_error(rows.shape[1], metric)
    covered = sizes if kind == "grouped" else sizes.new_tensor([M])
    picked = torch.minimum(counts, sizes) + (0 if start is None else start.shape[0])
    units = selection.units(covered, picked, maximum * unit, pair_error, bonus is not None)
    return selection.finish(Picks(*fields), units, kind == "grouped")


def _counts(k: int | Tensor | None, B: int, kind: str, device: torch.device) -> tuple[Tensor, bool]:
    """k of each problem [B], and whether it is an upper limit (an int over groups) or exact."""
    if isinstance(k, Tensor):
        _check.int64(OP, "k", k)
        _check.vector(OP, "k", k, B, "group")
        return k, False
    k = _check.integer(OP, "k", k, "be an int or an int64 tensor")
    if k < 0:
        _check.fail(OP, "k", "be at least 0", k)
    return torch.full((B,), k, dtype=torch.int64, device=device), kind == "grouped"
