"""What a selection may cost and how many of each class it may hold: the arguments, and what they admit.

budget   sum of cost over the picks                     (knapsack)
cap      picks of a class, at most                      (partition matroid)
least    picks of a class, at least; with caps and k the sets that can still be completed are a matroid as well
         (El Halabi et al., NeurIPS 2020)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check
from mrtkern._check import Array

OP = "facility_location"
MOST_COST = 2**62  # sums of two are int64


@dataclass(frozen=True, eq=False, kw_only=True)
class Limits:
    """Of B problems. None: not asked for."""

    cost: Tensor | None = None  # [T] int64, not negative
    budget: Tensor | None = None  # [B] int64
    is_by_ratio: bool = True  # the largest gain a cost leads, or the largest gain
    label: Tensor | None = None  # [T] int64, from 0 to classes - 1
    cap: Tensor | None = None  # [classes] int64
    least: Tensor | None = None  # [classes] int64
    names: Tensor | None = None  # [classes] int64, what the caller calls them; None: their numbers

    def of(self, rows: slice, problems: slice) -> Limits:
        """Those of some problems and their rows."""
        return dataclasses.replace(
            self,
            cost=None if self.cost is None else self.cost[rows],
            budget=None if self.budget is None else self.budget[problems],
            label=None if self.label is None else self.label[rows],
        )

    def after(self, ids: Tensor) -> Limits:
        """What they leave of one problem once these are picked."""
        budget, cap, least = self.budget, self.cap, self.least
        if self.cost is not None and budget is not None:
            budget = budget - self.cost[ids].sum()
        if self.label is not None and cap is not None:
            count = torch.bincount(self.label[ids], minlength=len(cap))
            cap, least = cap - count, None if least is None else (least - count).clamp(min=0)
        return dataclasses.replace(self, budget=budget, cap=cap, least=least)

    def name(self, number: int) -> int:
        """What the caller calls a class."""
        return number if self.names is None else int(self.names[number])

    def tensors(self) -> list[Tensor | None]:
        """All that decides, in one order."""
        return [self.cost, self.budget, self.label, self.cap, self.least]


def named(
    cost: Any, budget: Any, group: Any, group_cap: Any, group_min: Any, *, N: int, B: int, device: torch.device
) -> dict[str, Tensor | None]:
    """The operator's arguments; looks at types and shapes."""
    given = {"cost": cost, "budget": budget, "group": group, "group_cap or group_min": group_cap}
    if group_cap is None:
        given["group_cap or group_min"] = group_min
    for one, other in (("cost", "budget"), ("group", "group_cap or group_min")):
        if (given[one] is None) != (given[other] is None):
            missing, there = (one, other) if given[one] is None else (other, one)
            raise ValueError(f"{OP}: {there} must come with {missing}, got none")
    if cost is not None and group_min is not None:
        raise ValueError(f"{OP}: group_min must come without cost, got both")
    return {
        "cost": None if cost is None else _check.vector(OP, "cost", _check.int64(OP, "cost", cost), N, "candidate"),
        "budget": _one_or_many("budget", budget, B, "group", device),
        "group": None
        if group is None
        else _check.vector(OP, "group", _check.int64(OP, "group", group), N, "candidate"),
        "group_cap": _one_or_many("group_cap", group_cap, None, "class", device),
        "group_min": _one_or_many("group_min", group_min, None, "class", device),
    }


def _one_or_many(
    name: str, value: int | Array | None, size: int | None, like: str, device: torch.device
) -> Tensor | None:
    """An int as 0-d (or as many as there are), or a vector, int64."""
    if value is None:
        return None
    if not _check.is_array(value):
        number = _check.integer(OP, name, value, "be an int or an int64 tensor")
        return torch.full(() if size is None else (size,), number, dtype=torch.int64, device=device)
    found = _check.int64(OP, name, value)
    if size is not None:
        return _check.vector(OP, name, found, size, like)
    if found.ndim != 1:
        _check.fail(OP, name, f"be an int or have one entry per {like}", _check.shape(found))
    return found


def read(
    *, cost: Tensor | None, budget: Tensor | None, group: Tensor | None, group_cap: Tensor | None,
    group_min: Tensor | None,
) -> Limits | None:  # fmt: skip
    """The limits, their values looked at."""
    if cost is None and group is None:
        return None
    for name, value in (("cost", cost), ("budget", budget), ("group_cap", group_cap), ("group_min", group_min)):
        if value is not None and bool((value < 0).any()):
            where = "" if value.ndim == 0 else f" at {_check.first(value < 0)}"
            _check.fail(OP, name, "be at least 0", f"{int(value[value < 0][0])}{where}")
    if cost is not None and len(cost) and float(cost.double().sum()) >= MOST_COST:
        _check.fail(OP, "cost", "have a sum below 2**62", f"{float(cost.double().sum()):.3g}")
    if group is None:
        return Limits(cost=cost, budget=budget)
    sizes = {len(value) for value in (group_cap, group_min) if value is not None and value.ndim}
    if len(sizes) > 1:
        _check.fail(OP, "group_min", f"have one entry per class as group_cap {sorted(sizes)[1]}", sorted(sizes)[0])
    names = None
    if sizes:
        (classes,) = sizes
        outside = (group < 0) | (group >= classes)
        if bool(outside.any()):
            row = _check.first(outside)
            _check.fail(OP, "group", f"be from 0 to {classes - 1}", f"{int(group[row])} at row {row}")
        label = group
    else:
        names, label = group.unique(return_inverse=True)
        classes = len(names)
    cap = group.new_full((classes,), len(group)) if group_cap is None else group_cap.expand(classes).contiguous()
    least = None if group_min is None else group_min.expand(classes).contiguous()
    found = Limits(cost=cost, budget=budget, label=label, cap=cap, least=least, names=names)
    if least is not None and bool((least > cap).any()):
        g = _check.first(least > cap)
        got = f"{int(least[g])} and {int(cap[g])} of class {found.name(g)}"
        _check.fail(OP, "group_min", "be at most group_cap", got)
    return found


def room(limits: Limits, is_open: Tensor, offsets: Tensor) -> Tensor:
    """How many candidates of each problem [B] caps admit; refuses least numbers that a problem's open rows do not have.

    is_open: bool [T].
    """
    B, sizes = len(offsets) - 1, offsets.diff()
    problem = torch.repeat_interleave(sizes, output_size=len(is_open))
    if limits.label is None or limits.cap is None:
        return torch.bincount(problem[is_open], minlength=B)
    classes = len(limits.cap)
    counts = torch.bincount((problem * classes + limits.label)[is_open], minlength=B * classes).view(B, classes)
    if limits.least is not None and bool((counts < limits.least).any()):
        b, g = (counts < limits.least).nonzero()[0].tolist()
        least, there = int(limits.least[g]), int(counts[b, g])
        where = f"class {limits.name(g)}" + (f" in group {b}" if B > 1 else "")
        rule = "be at most the candidates that may be picked of its class"
        _check.fail(OP, "group_min", rule, f"{least} for {where}, which has {there} ({least - there} short)")
    return counts.minimum(limits.cap).sum(dim=1)


def refuse_few(limits: Limits, k: Tensor) -> None:
    """Raise where k leaves no room for the least numbers."""
    if limits.least is None:
        return
    needed = int(limits.least.sum())
    if bool((k < needed).any()):
        short = needed - int(k.min())
        _check.fail(OP, "k", f"be at least the sum of group_min {needed}", f"{int(k.min())} ({short} short)")
