"""Why a row was kept, and how two selections differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _check

if TYPE_CHECKING:
    from mrtkern.ops.facility_location.selection import Selection

# Of what a selection was made from, and how: the number of a problem, ids to evaluate in that order -> their selection.
Again = Callable[[int, Tensor], "Selection"]


class Explanation(NamedTuple):
    """A kept row.

    id, position: the row, and its place among the picks.
    gain: what it added to F when it was picked.
    loss: what F would lose if it were left out now; less than the gain where later picks stand in for it.
    rows int64: whom it stands for, itself included where it covers itself.
    second int64: for each of them the kept row that would stand for it instead, -1 for none.
    """

    id: int
    position: int
    gain: float
    loss: float
    rows: Tensor
    second: Tensor


class Comparison(NamedTuple):
    """Two selections from the same rows.

    both, only_here, only_there int64, ascending: ids of both, of the first, of the second.
    jaccard: ids of both, of all that either has.
    value_ratio: F of the first, of F of the second, summed over groups; of the same objective.
    """

    both: Tensor
    only_here: Tensor
    only_there: Tensor
    jaccard: float
    value_ratio: float


def explained(selection: Selection, id: int, again: Again | None) -> Explanation:
    """What a kept row does."""
    op = "Selection.explain"
    id = _check.integer(op, "id", id)
    places = (selection.ids == id).nonzero()[:, 0]
    if not len(places):
        _check.fail(op, "id", "be a kept row", id)
    if again is None:
        rule = "be one that facility_location returned and nobody copied: it alone has the rows"
        _check.fail(op, "selection", rule, "another")
    position, problem, first, last = int(places[0]), 0, 0, len(selection.ids)
    if selection.offsets is not None:
        problem = int(torch.searchsorted(selection.offsets, position, right=True)) - 1
        first, last = selection.offsets[problem : problem + 2].tolist()
    kept = selection.ids[first:last]
    value = float(selection.value if selection.offsets is None else selection.value[problem])
    others = again(problem, kept[kept != id])
    rows = (selection.owner == id).nonzero()[:, 0]
    return Explanation(
        id=id, position=position - first, gain=float(selection.gains[position]),
        loss=value - float(others.value), rows=rows, second=others.owner[rows],
    )  # fmt: skip


def compared(here: Selection, there: Any) -> Comparison:
    """How two selections differ."""
    op = "Selection.compare"
    if type(there) is not type(here):
        raise TypeError(f"{op}: other must be a Selection, got {type(there).__name__}")
    if len(here.owner) != len(there.owner):
        rule = f"be of the same {len(here.owner)} rows"
        _check.fail(op, "other", rule, f"one of {len(there.owner)}")
    is_there, is_here = torch.isin(here.ids, there.ids), torch.isin(there.ids, here.ids)
    both, only_here, only_there = (
        ids.sort().values for ids in (here.ids[is_there], here.ids[~is_there], there.ids[~is_here])
    )
    union, value = len(both) + len(only_here) + len(only_there), float(there.value.sum())
    return Comparison(
        both, only_here, only_there, jaccard=len(both) / union if union else 1.0,
        value_ratio=_ratio(float(here.value.sum()), value),
    )  # fmt: skip


def _ratio(here: float, there: float) -> float:
    return here / there if there else (math.inf if here else 1.0)


def elbow(gains: Tensor) -> int:
    """The number of picks, behind rows of a start, after which the curve of F bends most: where it lies furthest above
    the line from no pick to all of them (Satopaa et al., ICDCSW 2011), the first of equals."""
    gains = gains[int((gains.cumsum(0) == 0).sum()) :]
    total = float(gains.sum())
    if not total > 0:
        return 0
    above = gains.cumsum(0) / total - torch.arange(1, len(gains) + 1, dtype=torch.float64, device=gains.device) / len(
        gains
    )
    return int(above.argmax()) + 1
