"""Groups that the kernels for groups do not take: some are large, or options are asked for that only the loop for large
problems knows, as a mask.

Small groups without options are taken together, every other one by itself, and the answers put in order.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _progress
from mrtkern.ops.facility_location import large
from mrtkern.ops.facility_location.cpu import groups, oracles
from mrtkern.ops.facility_location.ground import Features, Groups
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks


def forward(problem: Problem, ground: Groups, rule: Rule) -> Picks:
    """Runs of small groups, and large groups, in their order."""
    if not len(rule.k):
        return groups.forward(ground, rule)
    sizes, edges = ground.offsets.diff(), [0]
    is_large = ((sizes > _C.LARGEST_GROUP) | bool(problem.options)).tolist()
    for b in range(1, len(is_large) + 1):
        if b == len(is_large) or is_large[b] or is_large[b - 1]:
            edges.append(b)
    parts = []
    for first, last in itertools.pairwise(edges):
        part, its_rule = cut(ground, rule, first, last)
        begin, end = (int(ground.offsets[b]) / max(len(ground.x), 1) for b in (first, last))
        with _progress.part(begin, end):
            if is_large[first]:
                parts.append(large.Call(one_set(part), its_rule, oracles.ENGINE).picks())
            else:
                parts.append(groups.forward(part, its_rule))
    return joined(parts)


def cut(ground: Groups, rule: Rule, first: int, last: int) -> tuple[Groups, Rule]:
    """Groups first … last - 1, and what of the rule is theirs."""
    begin, end = ground.offsets[[first, last]].tolist()
    before, total = int(rule.k[:first].sum()), int(rule.k[first:last].sum())
    rows, picks = slice(begin, end), slice(before, before + total)

    def of(value: Tensor | None, where: slice) -> Tensor | None:
        return None if value is None else value[where]

    part = dataclasses.replace(
        ground, x=ground.x[rows], offsets=ground.offsets[first : last + 1] - begin,
        largest=int(ground.offsets[first : last + 1].diff().max()), first_row=ground.first_row + begin,
    )  # fmt: skip
    return part, dataclasses.replace(
        rule, k=rule.k[first:last], total=total, group_key=rule.group_key[first:last], picks=of(rule.picks, picks),
        mask=of(rule.mask, rows), weight=of(rule.weight, rows), quality=of(rule.quality, rows),
        bonus=of(rule.bonus, rows),
        limits=None if rule.limits is None else rule.limits.of(rows, slice(first, last)),
    )  # fmt: skip


def one_set(ground: Groups) -> Features:
    """The only group, as a set of rows."""
    return Features(x=ground.x, metric=ground.metric, caller=ground.caller, first_row=ground.first_row)


def joined(parts: list[Picks]) -> Picks:
    """One answer after the other."""
    ends, found = 0, []
    for part in parts:
        found.append(part.offsets[1:] + ends)
        ends += int(part.offsets[-1])
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in Picks._fields if name != "offsets"}
    return Picks(offsets=torch.cat([parts[0].offsets[:1], *found]), **fields)
