"""Public `facility_location`, its registration with torch.library, and the way in for callers inside the library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrtkern import _dispatch
from mrtkern.ops.facility_location import arguments, selection, units
from mrtkern.ops.facility_location.ground import Ground, Groups
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks, Selection

OP = "facility_location"

torch.library.define(
    "mrtkern::facility_location",
    "(Tensor? x, Tensor k, *, bool is_limit, Tensor? similarity, float? similarity_scale, Tensor? targets, "
    "Tensor? offsets, str metric, Tensor? weight, Tensor? quality, Tensor? bonus, Tensor? start, Tensor? picks, "
    "Tensor? mask, str fill, Tensor? group_key, int seed, str? backend) "
    "-> (Tensor ids, Tensor gains, Tensor offsets, Tensor value, Tensor bound, Tensor random, Tensor effective_k, "
    "Tensor owner, Tensor share, Tensor step, Tensor slack)",
)


def _run(x: Tensor | None, k: Tensor, *, backend: str | None, **options: Any) -> tuple[Tensor, ...]:
    """Below torch.compile: the checks that read values, and the kernels."""
    ground, rule, found = arguments.read(x, k, **options)
    return (*_picks(ground, rule, backend), found.step, found.slack)


torch.library.impl("mrtkern::facility_location", ("cpu", "cuda"), _run)


@torch.library.register_fake("mrtkern::facility_location")
def _fake(
    x: Tensor | None, k: Tensor, *, similarity: Tensor | None, targets: Tensor | None, weight: Tensor | None,
    quality: Tensor | None, **_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    total, B = torch.library.get_ctx().new_dynamic_size(), k.shape[0]
    covered = next(rows for rows in (targets, similarity, x) if rows is not None)
    ids, gains, ends, owner = (k.new_empty(size) for size in (total, total, B + 1, covered.shape[0]))
    each = [k.new_empty(B) for _ in range(4)]
    share, slack = k.new_empty(total, dtype=torch.float32), k.new_empty(B, dtype=torch.float64)
    step = slack.new_empty(()) if weight is None and quality is None else slack.new_empty(B)
    return (ids, gains, ends, *each, owner, share, step, slack)


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
    picks: Tensor | None = None,
    mask: Tensor | None = None,
    fill: str = "index",
    group_key: Tensor | None = None,
    seed: int = 0,
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
        Rows to keep. With offsets an int (up to k per group) or int64 [B] (a k above its group is refused).
    similarity : [M, N], not negative, optional
        Instead of x: columns are candidates.
    similarity_scale : float, optional
        The similarity that counts as 1 (None: the maximum).
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
        Per thread, 2 N D + 2 N**2 + 96 D + 90 N bytes, N and D rounded up by at most 32.
    cuda
        16 bytes per group, and where the largest exceeds shared memory, per multiprocessor 2 N D + 2 N**2 + 47 N + 8192
        bytes, N and D rounded up by at most 16.
    reference
        64 bytes per pair, N**2 or M N pairs of the largest group.

    Beyond 4,096 rows one ground set runs through the reference, as it does with similarity, targets, start or mask; so
    does the whole call when one of its groups has more. 8,000 rows take 4.1 GB.

    Determinism
    -----------
    The same bits for every backend, thread count and instruction set.

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
        x, k, similarity=similarity, similarity_scale=similarity_scale, targets=targets, offsets=offsets, metric=metric,
        weight=weight, quality=quality, bonus=bonus, start=start, picks=picks, mask=mask, fill=fill,
        group_key=group_key, seed=seed, backend=backend,
    )  # fmt: skip
    *fields, step, slack = torch.ops.mrtkern.facility_location(**found)
    return selection.finish(Picks(*fields), step, slack, offsets is not None)
