"""Public `select_stages`: several selections of the same rows, each inside the next or outside all before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mrtkern import _check
from mrtkern._check import Array
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.facility_location.selection import Selection
from mrtkern.ops.neighbors.lists import Neighbors

OP = "select_stages"
ONE_K = ("polish", "method", "cost", "budget", "group_min")  # with another k they keep other rows


def select_stages(
    x: Array | None = None,
    k: Sequence[int] | None = None,
    *,
    disjoint: bool = False,
    start: Array | None = None,
    mask: Array | None = None,
    **options: Any,
) -> list[Selection]:
    """Selections of several sizes from the same rows, by `facility_location`: nested ones, or disjoint ones.

    Nested, each holds the one before it, in the same order: a curriculum, or one run that serves several budgets.
    Disjoint, each is the best of the rows that none before it has: the stages of a training run.

    Arguments
    ---------
    x : [N, D], optional
        As in `facility_location`, or similarity or graph among the options.
    k : sequence of int
        Rows of each stage; nested the sizes never fall.
    disjoint : bool
        No row is in two stages.
    start, mask
        As in `facility_location`; what start names is in every stage, which must be nested ones.
    options
        The other arguments of `facility_location` for every stage, save offsets, picks and checkpoint; for nested ones
        also save polish, method, cost and group_min, with which a smaller k is no prefix of a larger one.

    Returns
    -------
    list of Selection
        One for each k. No gradient.

    Raises
    ------
    ValueError
        For sizes that fall, or more rows than there are; and as `facility_location`.

    Memory
    ------
    As `facility_location`, stage by stage.

    Determinism
    -----------
    As `facility_location`: a nested stage is what the call with its k returns.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    >>> [stage.ids.tolist() for stage in mk.select_stages(x, [1, 3])]
    [[1], [1, 3, 2]]
    >>> [stage.ids.tolist() for stage in mk.select_stages(x, [2, 1], disjoint=True)]
    [[1, 3], [2]]

    Source
    ------
    Every prefix of greedy's picks is greedy's answer for a smaller K.
    """
    _check.flag(OP, "disjoint", disjoint)
    for name in ("offsets", "picks", "checkpoint", *(() if disjoint else ONE_K)):
        if options.get(name) not in (None, False, "lazy"):
            how = "" if name in ("offsets", "picks", "checkpoint") else " where stages are nested"
            raise ValueError(f"{OP}: {name} must be left to facility_location{how}, got one")
    if k is None or isinstance(k, (str, int)) or not hasattr(k, "__iter__"):
        raise TypeError(f"{OP}: k must be a sequence of ints, got {type(k).__name__}")
    sizes = [_check.integer(OP, "k", size, "be ints") for size in k]
    if disjoint:
        return _disjoint(x, sizes, start, mask, options)
    if any(a > b for a, b in itertools.pairwise(sizes)):
        _check.fail(OP, "k", "never fall where stages are nested", sizes)
    return [facility_location(x, size, start=start, mask=mask, **options) for size in sizes]


def _disjoint(
    x: Array | None, sizes: list[int], start: Array | None, mask: Array | None, options: dict[str, Any]
) -> list[Selection]:
    """Each from what is left."""
    if start is not None:
        raise ValueError(f"{OP}: start must come with nested stages, got disjoint ones")
    found: list[Selection] = []
    is_open = None if mask is None else _check.tensor(OP, "mask", mask).clone()
    for size in sizes:
        found.append(facility_location(x, size, mask=is_open, **options))
        if is_open is None:
            is_open = torch.ones(_candidates(x, options), dtype=torch.bool, device=found[-1].ids.device)
        is_open[found[-1].ids] = False
    return found


def _candidates(x: Array | None, options: dict[str, Any]) -> int:
    """How many rows may be picked; what facility_location took is known to have a shape."""
    graph = options.get("graph")
    if graph is not None:
        return int(graph.num_columns if isinstance(graph, Neighbors) else graph.shape[1])
    return int(np.shape(x)[0] if x is not None else np.shape(options["similarity"])[1])
