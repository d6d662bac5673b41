"""The checks of `facility_location`, once each: `named` those that look at types and shapes, `read` those that look at
values. Callers inside the library make a ground and a rule themselves and enter below."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _dispatch, lattice
from mrtkern._check import Array
from mrtkern.ops.facility_location import graphs, limits, units
from mrtkern.ops.facility_location.ground import METRICS, Features, Graph, Ground, Groups, Matrix
from mrtkern.ops.facility_location.limits import Limits
from mrtkern.ops.facility_location.rule import FILLS, INTERRUPTS, METHODS, Course, Rule
from mrtkern.ops.facility_location.units import Units

OP = "facility_location"


def named(
    x: Array | None, k: int | Array | None, *, similarity: Array | None, similarity_scale: float | None,
    graph: Any, targets: Array | None, offsets: Array | None, metric: str, weight: Array | None,
    quality: Array | None, bonus: Array | None, start: Array | None, picks: Array | None, mask: Array | None,
    fill: str, group_key: Array | None, seed: int, backend: str | None, **limited: Any,
) -> dict[str, Any]:  # fmt: skip
    """The operator's arguments; `limited`: of limits.named. Reads no values of x, so that torch.compile passes."""
    edges = graphs.edges(graph)
    rows, targets, offsets = _rows(x, similarity, edges.graph_values, targets, offsets)
    _check.one_of(OP, "metric", metric, METRICS)
    _check.one_of(OP, "fill", fill, FILLS)
    _dispatch.check(OP, backend)
    seed = _check.integer(OP, "seed", seed)
    if similarity_scale is not None:
        _check.number(OP, "similarity_scale", similarity_scale)
    start = None if start is None else _check.int64(OP, "start", start)
    picks = None if picks is None else _check.int64(OP, "picks", picks)
    if start is not None and (offsets is not None or picks is not None):
        raise ValueError(f"{OP}: start must come without offsets and picks, got both")
    if graph is not None:
        M, N = edges.rows, edges.graph_columns
    else:
        N = rows.shape[0] if similarity is None else rows.shape[1]
        M = (rows if targets is None else targets).shape[0]
    B = 1 if offsets is None else offsets.shape[0] - 1
    weight = _entries("weight", weight, M, "row to cover", torch.float32)
    quality = _entries("quality", quality, N, "candidate", torch.float32)
    bonus = _entries("bonus", bonus, N, "candidate", torch.float32)
    mask = _entries("mask", mask, N, "candidate", torch.bool)
    group_key = _entries("group_key", group_key, B, "group", torch.int64)
    limits_of = limits.named(**limited, N=N, B=B, device=rows.device)
    is_limit = (offsets is not None or k is None) and not _check.is_array(k)
    k = _counts(k, B, N, rows.device)
    tensors = {
        "targets": targets, "k": k, "weight": weight, "quality": quality, "bonus": bonus, "start": start,
        "picks": picks, "mask": mask, "group_key": group_key, **limits_of,
    }  # fmt: skip
    name = "graph" if graph is not None else "x" if similarity is None else "similarity"
    _check.same_device(OP, **{name: rows}, **tensors)
    rows = rows.detach().resolve_neg()  # kernels read the memory: a lazy minus sign must be in it
    tensors["targets"] = None if targets is None else lattice.to_float32(targets.detach().resolve_neg())
    tensors["x"] = lattice.to_float32(rows) if name == "x" else None
    tensors["similarity"] = rows if name == "similarity" else None
    return {
        **tensors, **dict(zip(graphs.Edges._fields, edges, strict=True)),
        "is_limit": is_limit, "similarity_scale": similarity_scale, "offsets": offsets, "metric": metric, "fill": fill,
        "seed": seed, "backend": backend,
    }  # fmt: skip


def _rows(
    x: Any, similarity: Any, values: Any, targets: Any, offsets: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The features, similarities or edges, targets and offsets; refuses contradictory arguments."""
    given = {"x": x, "similarity": similarity, "graph": values}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        got = " and ".join(names) or "none of them"
        raise ValueError(f"{OP}: exactly one of x, similarity and graph must be given, got {got}")
    (name,) = names
    rows = _check.tensor(OP, name, given[name], torch.float32)
    if not (name == "similarity" and rows.dtype == torch.uint16):
        _check.floating(OP, name, rows)
    if name != "graph" and rows.ndim != 2:
        _check.fail(OP, name, "be a matrix", _check.shape(rows))
    if offsets is not None and (x is None or targets is not None):
        raise ValueError(
            f"{OP}: offsets must come with x and without targets, got {'targets' if x is not None else name}"
        )
    if targets is not None:
        targets = _check.floating(OP, "targets", targets)
        if x is None or targets.ndim != 2 or targets.shape[1] != rows.shape[1]:
            got = f"{_check.shape(targets)} for {name} {_check.shape(rows)}"
            _check.fail(OP, "targets", "be a matrix with the features of x", got)
    if offsets is not None:
        offsets = _check.offsets(OP, offsets, rows.device)
    return rows, targets, offsets


def course(
    *, stop_gain: float | None, stop_fraction: float | None, stop_coverage: float | None, checkpoint: Any,
    on_interrupt: str, max_memory: int | None, offsets: Array | None, picks: Array | None,
) -> dict[str, Any]:  # fmt: skip
    """The operator's arguments about when a call ends and how it runs."""
    _check.one_of(OP, "on_interrupt", on_interrupt, INTERRUPTS)
    stops = {"stop_gain": stop_gain, "stop_fraction": stop_fraction, "stop_coverage": stop_coverage}
    for name, value in stops.items():
        if value is not None:
            _check.number(OP, name, value)
            if not (0 <= float(value) < math.inf) or (name != "stop_gain" and value > 1):
                _check.fail(OP, name, "be 0 or more" if name == "stop_gain" else "be from 0 to 1", value)
    if max_memory is not None and _check.integer(OP, "max_memory", max_memory) < 1:
        _check.fail(OP, "max_memory", "be at least 1 byte", max_memory)
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"{OP}: checkpoint must be a path, got {type(checkpoint).__name__}")
    given = {
        **stops, "checkpoint": checkpoint,
        "on_interrupt 'prefix'": None if on_interrupt == "raise" else on_interrupt,
    }  # fmt: skip
    for name, ending in given.items():
        if ending is not None and (offsets is not None or picks is not None):
            other = "offsets" if offsets is not None else "picks"
            raise ValueError(f"{OP}: {name} must come without offsets and picks, got {other}")
    return {
        **{name: None if value is None else float(value) for name, value in stops.items()},
        "checkpoint": None if checkpoint is None else os.fspath(checkpoint), "on_interrupt": on_interrupt,
        "max_memory": max_memory,
    }  # fmt: skip


def how(
    k: Any, *, method: str, epsilon: float, polish: bool | int, picks: Array | None, is_limited: bool, stops: bool,
    budget: Any, group_min: Any, fill: str,
) -> dict[str, Any]:  # fmt: skip
    """The operator's arguments about who is tried."""
    _check.one_of(OP, "method", method, METHODS)
    _check.number(OP, "epsilon", epsilon)
    if not 0 < float(epsilon) < 1:
        _check.fail(OP, "epsilon", "lie between 0 and 1", epsilon)
    if method == "stochastic" and (picks is not None or is_limited):
        raise ValueError(f"{OP}: method 'stochastic' must come without picks, cost and group, got one of them")
    if picks is not None and is_limited:
        raise ValueError(f"{OP}: picks must come without cost and group, got one of them")
    if k is None and not stops and budget is None:
        raise TypeError(f"{OP}: k must be an int or an int64 tensor, got NoneType")
    if group_min is not None and (k is None or stops or fill == "none"):
        other = "fill 'none'" if fill == "none" else "a stop" if stops else "no k"
        raise ValueError(f"{OP}: group_min must come with k and without stops and fill 'none', got {other}")
    if not isinstance(polish, bool) and _check.integer(OP, "polish", polish, "be a bool or an int") < 0:
        _check.fail(OP, "polish", "be a bool or at least 0 swaps", polish)
    return {"method": method, "epsilon": float(epsilon), "polish": -int(polish) if isinstance(polish, bool) else polish}


def _entries(name: str, value: Array | None, size: int, like: str, dtype: torch.dtype) -> Tensor | None:
    """One real entry per row, of `dtype` where that is no floating one, or None."""
    if value is None:
        return None
    value = _check.vector(OP, name, value if dtype != torch.int64 else _check.int64(OP, name, value), size, like)
    if value.is_complex():
        _check.fail(OP, name, "be real", value.dtype)
    if dtype in (torch.int64, torch.bool) and value.dtype != dtype:
        _check.fail(OP, name, f"be {str(dtype).removeprefix('torch.')}", value.dtype)
    return value.detach().resolve_neg()


def _counts(k: int | Array | None, B: int, N: int, device: torch.device) -> Tensor:
    """k of each problem, [B]; None: all N candidates."""
    if _check.is_array(k):
        return _check.vector(OP, "k", _check.int64(OP, "k", k), B, "group")
    k = N if k is None else _check.integer(OP, "k", k, "be an int or an int64 tensor")
    if k < 0:
        _check.fail(OP, "k", "be at least 0", k)
    return torch.full((B,), k, dtype=torch.int64, device=device)


def read(
    x: Tensor | None, k: Tensor, *, is_limit: bool, similarity: Tensor | None, similarity_scale: float | None,
    targets: Tensor | None, offsets: Tensor | None, metric: str, weight: Tensor | None, quality: Tensor | None,
    bonus: Tensor | None, start: Tensor | None, picks: Tensor | None, mask: Tensor | None, fill: str,
    group_key: Tensor | None, seed: int, stop_gain: float | None, stop_fraction: float | None,
    stop_coverage: float | None, method: str, epsilon: float, polish: int, course: Course, edges: graphs.Edges,
    **limited: Tensor | None,
) -> tuple[Ground, Rule, Units]:  # fmt: skip
    """Every check that reads values, and what the backends are given.

    On a GPU a value that is read is waited for: all of them are read together, where nothing depends on another, so
    that a plain selection waits once before the kernel and once, for what it found, after it.
    """
    facts = _check.Facts()
    candidates = next(size for size in (
        None if x is None else x.shape[0], None if similarity is None else similarity.shape[1], edges.graph_columns,
    ) if size is not None)  # fmt: skip
    ends = k.new_tensor([0, candidates]) if offsets is None else offsets
    if offsets is not None:
        _check.offsets_values(OP, offsets, candidates, facts=facts)
    weight = _not_negative("weight", weight, facts)
    quality = _not_negative("quality", quality, facts)
    bonus = _not_negative("bonus", bonus, facts)
    if start is not None:
        _start_values(start, candidates)
    if start is not None or mask is not None:
        facts.read()
    sizes = ends[1:] - ends[:-1]
    within = limits.read(**limited)
    room, asked = _room(ends, start, mask, within), torch.minimum(k, sizes)
    k = torch.minimum(k, room) if is_limit else _fitting(k, room, offsets is not None, facts, within)
    if within is not None:
        limits.refuse_few(within, k)
    largest, total = facts.read(torch.cat([k.new_zeros(1), sizes]).max(), k.sum())
    ground = _ground(x, similarity, edges, targets, offsets, metric=metric, scale=similarity_scale, largest=largest)
    group_key = torch.arange(k.shape[0], dtype=torch.int64, device=k.device) if group_key is None else group_key
    rule = Rule(
        k=k, total=total, group_key=group_key, fill=fill, seed=seed, start=start, picks=picks, mask=mask,
        weight=weight, quality=quality, bonus=bonus, stop_gain=stop_gain, stop_fraction=stop_fraction,
        stop_coverage=stop_coverage, limits=within, method=method, epsilon=epsilon, polish=polish,
        course=course,
    )  # fmt: skip
    facts = _check.Facts()
    if picks is not None:
        _picks_values(picks, ends, k, total, mask, facts)
    found = units.of(ground, rule, asked)
    _ranges(rule, ends, found.pair, facts)
    facts.read()
    return ground, rule, found


def _ground(
    x: Tensor | None, similarity: Tensor | None, edges: graphs.Edges, targets: Tensor | None, offsets: Tensor | None,
    *, metric: str, scale: float | None, largest: int,
) -> Ground:  # fmt: skip
    """What is covered."""
    if similarity is not None:
        return Matrix(s=similarity, scale=_matrix_scale(similarity, scale))
    if x is None:
        ends, ids, values, N = edges
        assert ends is not None and ids is not None and values is not None
        found = graphs.scale_of(edges, scale)
        return Graph(ends=ends, ids=ids, values=values, size=N, has_self=edges.rows == N, scale=found)
    if offsets is None:
        return Features(x=x, metric=metric, targets=targets)
    return Groups(x=x, metric=metric, offsets=offsets, largest=largest)


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


def _matrix_scale(s: Tensor, scale: float | None) -> float:
    """The largest entry of a similarity matrix, or the scale that was given; refuses what is not a similarity."""
    if s.dtype == torch.uint16:
        if scale is None:
            _check.fail(OP, "similarity_scale", "be given with a similarity of uint16", scale)
        most = int(s.view(torch.int16).int().bitwise_and(0xFFFF).max()) if s.numel() else 1
        if not (scale > 0 and most <= scale):
            _check.fail(OP, "similarity_scale", f"be at least the largest similarity {most}", scale)
        return float(scale)
    low, high = s.aminmax() if s.numel() else (s.new_zeros(()), s.new_ones(()))  # one pass; a NaN makes both NaN
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0):
        m = next(i for i, row in enumerate(s) if not bool((torch.isfinite(row) & (row >= 0)).all()))
        n = _check.first(~(torch.isfinite(s[m]) & (s[m] >= 0)))
        mends = "shift it to (1 + s) / 2 or clamp it at 0"
        _check.fail(OP, "similarity", f"be finite and not negative ({mends})", f"{float(s[m, n])} at [{m}, {n}]")
    largest = float(high)
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


def _room(offsets: Tensor, start: Tensor | None, mask: Tensor | None, within: Limits | None) -> Tensor:
    """How many rows each problem can still pick, [B]."""
    if start is None and mask is None and within is None:
        return offsets[1:] - offsets[:-1]
    is_open = offsets.new_ones(int(offsets[-1])) if mask is None else mask.long()
    if start is not None:
        is_open[start] = 0
    if within is not None:
        return limits.room(within, is_open > 0, offsets)
    total = torch.cat([is_open.new_zeros(1), is_open.cumsum(0)])
    return total[offsets[1:]] - total[offsets[:-1]]


def _fitting(k: Tensor, room: Tensor, has_groups: bool, facts: _check.Facts, within: Limits | None) -> Tensor:
    bad = (k < 0) | (k > room)

    def sentence() -> None:
        b = _check.first(bad)
        where = f" in group {b}" if has_groups else ""
        many = "of candidates" if within is None or within.label is None else "that group_cap admits,"
        short = "" if within is None or within.label is None else f" ({int(k[b] - room[b])} short)"
        _check.fail(OP, "k", f"be from 0 to the number {many} {int(room[b])}{where}", f"{int(k[b])}{short}")

    facts.refuse(bad, sentence)
    return k


def _picks_values(
    picks: Tensor, offsets: Tensor, k: Tensor, total: int, mask: Tensor | None, facts: _check.Facts
) -> None:
    """Picks to evaluate must lie in their groups, each once; `total`: the sum of k."""
    if picks.shape[0] != total:
        _check.fail(OP, "picks", f"hold the sum of k = {total} row numbers", picks.shape[0])
    group = torch.repeat_interleave(k, output_size=total)
    outside = (picks < offsets[group]) | (picks >= offsets[group + 1])
    ascending = picks.sort().values

    def sentence() -> None:
        i = _check.first(outside)
        _check.fail(OP, "picks", f"stay inside its group {int(group[i])}", f"row {int(picks[i])}")

    facts.refuse(outside, sentence)
    different = "{} entries with {} different ones"
    facts.refuse(
        ascending[1:] == ascending[:-1],
        lambda: _check.fail(OP, "picks", "name each row once", different.format(picks.numel(), picks.unique().numel())),
    )
    if mask is not None:
        facts.read()
        facts.refuse(
            ~mask[picks], lambda: _check.fail(OP, "picks", "respect mask", f"row {int(picks[~mask[picks]][0])}")
        )


def _ranges(rule: Rule, offsets: Tensor, pair: Tensor, facts: _check.Facts) -> None:
    """Refuse what float32 coefficients and 64-bit sums of steps cannot hold; `pair`: the largest one of a problem."""
    if rule.quality is not None:
        largest = units.largest(rule.quality, offsets)
        is_extreme = (largest > 0) & ((largest < 2.0**-100) | (largest > 2.0**100))
        bounds = "have its largest value in a group from 2**-100 to 2**100"
        facts.refuse(is_extreme, lambda: _check.fail(OP, "quality", bounds, float(largest[_check.first(is_extreme)])))
    if rule.bonus is not None:
        total = torch.cat([pair.new_zeros(1), rule.bonus.double().cumsum(0)])
        sums = total[offsets[1:]] - total[offsets[:-1]]
        is_large = sums > pair * 2.0**38  # steps stay below 2**53 then, exact in float64

        def sentence() -> None:
            b = _check.first(is_large)
            most = f"sum to at most 2**38 times the largest pair {float(pair.expand_as(sums)[b]):.3g} in a group"
            _check.fail(OP, "bonus", most, float(sums[b]))

        facts.refuse(is_large, sentence)
