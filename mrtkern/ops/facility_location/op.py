"""Public `facility_location`, its registration with torch.library, and the way in for callers inside the library."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mrtkern import _dispatch, _operators, _progress
from mrtkern._check import Array
from mrtkern.ops.facility_location import arguments, selection, units
from mrtkern.ops.facility_location.graphs import Edges
from mrtkern.ops.facility_location.ground import Ground, Groups
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Course, Rule
from mrtkern.ops.facility_location.selection import Picks, Selection
from mrtkern.ops.neighbors.lists import Neighbors

OP = "facility_location"


def _run(x: Tensor | None, k: Tensor, *, backend: str | None, **options: Any) -> tuple[Tensor, ...]:
    """Below torch.compile: the checks that read values, and the kernels."""
    edges = Edges(**{name: options.pop(name) for name in Edges._fields})
    course = Course(**{field.name: options.pop(field.name) for field in dataclasses.fields(Course)})
    ground, rule, found = arguments.read(x, k, **options, edges=edges, course=course)
    return (*_picks(ground, rule, backend), found.step, found.slack)


def _fake(
    x: Tensor | None, k: Tensor, *, similarity: Tensor | None, targets: Tensor | None, weight: Tensor | None,
    quality: Tensor | None, graph_ends: Tensor | None, **_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    total, B = torch.library.get_ctx().new_dynamic_size(), k.shape[0]
    sizes = (rows.shape[0] for rows in (targets, similarity, x) if rows is not None)
    M = next(sizes) if graph_ends is None else graph_ends.shape[0] - 1
    ids, gains, ends, owner = (k.new_empty(size) for size in (total, total, B + 1, M))
    each = [k.new_empty(B) for _ in range(4)]
    share, slack = k.new_empty(total, dtype=torch.float32), k.new_empty(B, dtype=torch.float64)
    step = slack.new_empty(()) if weight is None and quality is None else slack.new_empty(B)
    return (ids, gains, ends, *each, owner, share, step, slack)


_operators.define(
    "facility_location",
    "(Tensor? x, Tensor k, *, bool is_limit, Tensor? similarity, float? similarity_scale, Tensor? graph_ends, "
    "Tensor? graph_ids, Tensor? graph_values, int graph_columns, Tensor? targets, Tensor? offsets, str metric, "
    "Tensor? weight, Tensor? quality, Tensor? bonus, Tensor? start, Tensor? picks, "
    "Tensor? mask, str fill, Tensor? group_key, int seed, float? stop_gain, float? stop_fraction, str? checkpoint, "
    "str on_interrupt, int? max_memory, Tensor? cost, Tensor? budget, Tensor? group, Tensor? group_cap, "
    "Tensor? group_min, float? stop_coverage, str method, float epsilon, int polish, str? backend) "
    "-> (Tensor ids, Tensor gains, Tensor offsets, Tensor value, Tensor bound, Tensor random, Tensor effective_k, "
    "Tensor owner, Tensor share, Tensor step, Tensor slack)",
    _run,
    _fake,
)


def _picks(ground: Ground, rule: Rule, backend: str | None) -> Picks:
    problem = Problem.of(ground, rule)
    kernels = _dispatch.run(OP, backend, problem, ground.caller.op)
    found: Picks = kernels.forward(problem, ground, rule)
    return found


def solve(ground: Ground, rule: Rule, backend: str | None) -> Selection:
    """Select, below the checks: for callers inside the library, whose ground and rule are right, and not traced."""
    found = units.of(ground, rule)
    return selection.finish(_picks(ground, rule, backend), found.step, found.slack, isinstance(ground, Groups))


def facility_location(
    x: Array | None = None,
    k: int | Array | None = None,
    *,
    similarity: Array | None = None,
    similarity_scale: float | None = None,
    graph: Neighbors | Tensor | None = None,
    targets: Array | None = None,
    offsets: Array | None = None,
    metric: str = "shifted_cosine",
    weight: Array | None = None,
    quality: Array | None = None,
    bonus: Array | None = None,
    start: Array | None = None,
    picks: Array | None = None,
    mask: Array | None = None,
    fill: str = "index",
    group_key: Array | None = None,
    seed: int = 0,
    stop_gain: float | None = None,
    stop_fraction: float | None = None,
    stop_coverage: float | None = None,
    cost: Array | None = None,
    budget: int | Array | None = None,
    group: Array | None = None,
    group_cap: int | Array | None = None,
    group_min: int | Array | None = None,
    method: str = "lazy",
    epsilon: float = 0.01,
    polish: bool | int = False,
    checkpoint: str | os.PathLike[str] | None = None,
    on_interrupt: str = "raise",
    max_memory: int | None = None,
    progress: bool | Callable[[float], Any] = False,
    backend: str | None = None,
) -> Selection:
    """Keep k rows that cover all rows best, by exact greedy on integers.

        F(S) = sum_{j in S} bonus_j + sum_i weight_i max_{j in S} quality_j s_ij

    One row at a time, always the largest gain, equal gains to the lower row number.

    Arguments
    ---------
    x : [N, D], float32, float64, bfloat16 or float16
        Rows are covered and are the candidates; only their directions count.
    k : int, or int64 [B]
        Rows to keep. With offsets an int (up to k per group) or int64 [B] (a k above its group is refused). May be left
        out where a budget or one of the stops ends it; nothing fills up then.
    similarity : [M, N], not negative, optional
        Instead of x: columns are candidates.
        uint16 too, with similarity_scale.
    similarity_scale : float, optional
        The similarity that counts as 1 (None: the maximum).
    graph : Neighbors, or sparse CSR [M, N], not negative, optional
        Instead of x: the similarities of some pairs; the others count 0, and so do negative scores of Neighbors. In a
        square graph every row covers itself by 1 unless it lists itself.
    targets : [M, D], optional
        Other rows to cover than x.
    offsets : int64 [B + 1], optional
        Group b owns rows offsets[b]:offsets[b + 1].
    metric : str
        "shifted_cosine" (1 + cos) / 2 or "clamped_cosine" max(cos, 0).
    weight : [M], optional
        Of rows to cover.
    quality : [N], optional
        Multiplies a candidate's similarities.
    bonus : [N], optional
        Added when a candidate is picked, in the units of F. Weight, quality and bonus are finite and not negative, and
        are rounded to float32.
    start : int64, optional
        Rows kept already; they come first and do not count in k.
    picks : int64 [sum of k], optional
        Evaluate these instead.
    mask : bool [N], optional
        Who may be picked.
    fill : str
        What follows once no candidate gains: "index" the lowest row numbers, "coverage" greedy on the unweighted
        objective, then at random, "random" by the hash of (seed, group_key, position), "none" fewer ids.
    group_key : int64 [B], optional
        Names each group to the random numbers, so that batching does not matter (None: 0 … B - 1).
    seed : int
    stop_gain : float, optional
        No pick gains less, in the units of F; fewer than k rows are kept then, and nothing fills up.
    stop_fraction : float, optional
        No pick gains less than this part of what the first gained.
    stop_coverage : float, optional
        The first picks that cover this part of sum_i weight_i max(quality) are enough: of 1 with neither, the mean
        similarity of a row to the nearest kept row.
    cost : int64 [N], optional
        What each candidate costs, 0 or more. Two selections are made, the largest gain per cost first and the largest
        gain first, and the better one is kept: at least (1 - 1/e) / 2 of the optimum.
    budget : int, or int64 [B]
        The picks cost no more.
    group : int64 [N], optional
        A class of each candidate.
    group_cap : int, or int64 [classes], optional
        No more picks of a class; with a tensor classes are numbers from 0. At least 1/2 of the optimum.
    group_min : int, or int64 [classes], optional
        No fewer picks of a class. At least 1/2 of the optimum; needs k, and neither cost, a stop nor fill "none". No
        limit counts `start`. With offsets an int k is lowered to what caps admit; nothing is proved of cost with group.
    method : str
        "lazy", or "stochastic": each pick is the best of N / k * ln(1 / epsilon) candidates drawn for it, which
        reaches 1 - 1/e - epsilon of the optimum in expectation; upper_bound is looser. Not with cost and group.
    epsilon : float
        What the guarantee of "stochastic" loses.
    polish : bool or int
        Then swap kept rows for others while F rises (FasterPAM's swaps), as often as that helps or at most so many
        times; within the limits, rows of start stay. gains are those of greedy among what is kept then.
    checkpoint : path, optional
        The picks go to this file every 30 seconds and at the end, whole or not at all; a call that finds it there goes
        on from it, on any device, and one of other data or options refuses it. With a budget the selection by gain has
        a file beside it, whose name ends in .by-gain. Neither this nor the stops come with offsets.
    on_interrupt : str
        What Ctrl-C does: "raise" KeyboardInterrupt, or "prefix" return what was picked so far; the
        latter not with offsets or picks.
    max_memory : int, optional
        Bytes to take beside the inputs, of the device where they lie on one (None: half of its memory, or of the
        machine's). Changes no pick.
    progress : bool or callable
        True draws a bar on a terminal; a callable is told fractions from 0 to 1.
    backend : str, optional
        None chooses; a name is obeyed or refused.

    Returns
    -------
    Selection
        No gradient.

    Precision
    ---------
    |value - F| <= rows * max(weight) * max(quality) * (0.52 / 32767 + e), e half of `lattice.cosine_error(D)` or the
    whole of it when clamped, and half a step per bonus; upper_bound includes it.

    Raises
    ------
    ValueError
        For contradictory arguments, NaN or infinite features (naming the row), offsets that do not cover x.
    TypeError
        For what is no tensor and a k that is neither int nor tensor.
    MemoryError
        With the bytes needed when it cannot fit.

    Memory
    ------
    cpu
        Groups of up to 4,096 rows, per thread: 2 N D + 2 N**2 + 96 D + 90 N bytes, N and D rounded up by at most 32.
        Everything else: 64 N bytes, and of x 2 N D (with targets 2 M D more), N M / 2,048 and 320 MiB; a table of 2 N M
        bytes where max_memory has room for it, otherwise lists of at most the room that is left; of a similarity
        2 N M and 40 MiB; of a graph 24 bytes an edge, 48 (N + M) and 32 MiB.
    cuda
        16 bytes per group, and where the largest exceeds shared memory, per multiprocessor 2 N D + 2 N**2 + 47 N + 8192
        bytes, N and D rounded up by at most 16.
    triton
        Of the device 256 MiB, 160 (N + M) bytes, and of x 2 N D (with targets 2 M D more), D rounded up by at most 63,
        and lists, 6 bytes a pair, as large as max_memory has room for; of a similarity 2 N M; of a graph 80 bytes an
        edge and a row. Of the machine 64 N bytes.
    reference
        64 bytes per pair, N**2 or M N pairs of the largest group.

    Determinism
    -----------
    The same bits for every backend, thread count and instruction set; but upper_bound, and with it skill, comes from
    fewer exact gains, so that it may lie higher than elsewhere, of more rows than max_memory has a table for on a CPU,
    of more than 2**36 pairs on a device, and of method "stochastic".

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    >>> kept = mk.facility_location(x, 2)
    >>> kept.ids, kept.owner
    (tensor([1, 3]), tensor([1, 1, 1, 3]))

    Source
    ------
    arXiv 2606.00544, section 4; upper_bound: Leskovec et al., KDD 2007. `mrtkern.ops.facility_location` has the
    arithmetic.
    """
    found = arguments.named(
        x, k, similarity=similarity, similarity_scale=similarity_scale, graph=graph, targets=targets, offsets=offsets,
        metric=metric, weight=weight, quality=quality, bonus=bonus, start=start, picks=picks, mask=mask,
        fill="none" if k is None else fill, group_key=group_key, seed=seed, backend=backend, cost=cost, budget=budget,
        group=group, group_cap=group_cap, group_min=group_min,
    )  # fmt: skip
    stops = any(value is not None for value in (stop_gain, stop_fraction, stop_coverage))
    how = arguments.how(
        k, method=method, epsilon=epsilon, polish=polish, picks=picks, stops=stops, budget=budget, group_min=group_min,
        is_limited=cost is not None or group is not None, fill=fill,
    )  # fmt: skip
    _progress.check(OP, progress)
    course = arguments.course(
        stop_gain=stop_gain, stop_fraction=stop_fraction, stop_coverage=stop_coverage, checkpoint=checkpoint,
        on_interrupt=on_interrupt, max_memory=max_memory, offsets=offsets, picks=picks,
    )  # fmt: skip
    with _progress.shown(OP, progress) if progress else contextlib.nullcontext():
        *fields, step, slack = torch.ops.mrtkern.facility_location(**found, **course, **how)
    made = selection.finish(Picks(*fields), step, slack, offsets is not None)
    known = {
        "x": x, "similarity": similarity, "similarity_scale": similarity_scale, "graph": graph, "targets": targets,
        "metric": metric, "weight": weight, "quality": quality, "bonus": bonus, "max_memory": max_memory,
        "backend": backend,
    }  # fmt: skip
    return made.known(functools.partial(_again, found["offsets"], known))


def _again(offsets: Tensor | None, known: dict[str, Any], problem: int, picks: Tensor) -> Selection:
    """The value of other picks of one problem; ids are those of the whole call."""
    if offsets is None:
        return facility_location(k=len(picks), picks=picks, **known)
    first, last = offsets[problem : problem + 2].tolist()
    of_rows = {name: known[name][first:last] for name in ("x", "weight", "quality", "bonus") if known[name] is not None}
    found = facility_location(k=len(picks), picks=picks - first, **{**known, **of_rows})
    owner = torch.full((int(offsets[-1]),), -1, dtype=torch.int64, device=picks.device)
    owner[first:last] = torch.where(found.owner >= 0, found.owner + first, -1)
    return dataclasses.replace(found, owner=owner)
