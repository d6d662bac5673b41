"""What the compiled backends are given for many groups, and what they leave: the same call on every device."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _device, lattice
from mrtkern.ops.facility_location.ground import Features, Groups, Matrix
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks

LIMITS = "groups of up to {:,} rows of features, without similarity matrix, targets, start and mask"


def why_not(problem: Problem, largest_group: int) -> str | None:
    """The limits that the kernels have on every device."""
    if problem.form is Matrix:
        return "needs features: a given similarity matrix runs in the reference"
    if problem.options:
        return f"takes no {', '.join(problem.options)}"
    if reason := _device.not_narrow(problem.dtype):
        return reason
    if problem.largest is not None and problem.largest > largest_group:
        return f"takes groups of up to {largest_group} rows, got {problem.largest}"
    return None


class Results(NamedTuple):
    """Written by a kernel: SelectionResult in csrc/facility_location/facility_location.h."""

    ids: Tensor  # [Σ k] int64
    gains: Tensor  # [Σ k] int64
    share: Tensor  # [Σ k] float32
    kept: Tensor  # [B] int64, like the next four
    value: Tensor
    bound: Tensor
    random: Tensor
    effective: Tensor
    owner: Tensor  # [T] int64


def _addresses(values: dict[str, Tensor | None]) -> dict[str, int]:
    return {name: _device.address(value) for name, value in values.items()}


class Call:
    """Addresses for one call; holds the tensors that they belong to."""

    def __init__(self, ground: Features | Groups, rule: Rule) -> None:
        self.ground, self.rule = ground, rule
        x, k, total = ground.x, rule.k, rule.total
        self.groups, self.weights = (
            {name: None if value is None else value.contiguous() for name, value in given.items()}
            for given in (
                {"offsets": ground.offsets, "k": k, "picks": rule.picks, "group_key": rule.group_key},
                {"weight": rule.weight, "quality": rule.quality, "bonus": rule.bonus},
            )
        )
        ids, gains, share = k.new_empty(total), k.new_empty(total), x.new_empty(total, dtype=torch.float32)
        kept, value, bound, random, effective = (k.new_empty(len(k)) for _ in range(5))
        owner = k.new_empty(x.shape[0])
        self.results = Results(
            ids=ids, gains=gains, share=share, kept=kept, value=value, bound=bound, random=random, effective=effective,
            owner=owner,
        )  # fmt: skip

    def problem(self, extension: ModuleType) -> Any:
        """The problem as `extension`, _C or _cuda, knows it."""
        ground, rule, x = self.ground, self.rule, self.ground.x
        return extension.SelectionProblem(
            x=_device.features(extension, x),
            groups=extension.SelectionGroups(
                num_groups=len(rule.k), first_row=ground.first_row, **_addresses(self.groups)
            ),
            weights=extension.SelectionWeights(**_addresses(self.weights)),
            metric=ground.metric,
            radius=lattice.radius(x.shape[1]),
            fill=rule.fill,
            seed=rule.seed,
        )

    def result(self, extension: ModuleType) -> Any:
        """Where `extension` is to write."""
        return extension.SelectionResult(**_addresses(self.results._asdict()))

    def picks(self, kept: int) -> Picks:
        """The answer; `kept`: how many ids there are, fewer than the sum of k only where nothing fills up."""
        r, k, total = self.results, self.rule.k, self.rule.total
        ids, gains, share = r.ids, r.gains, r.share
        if kept < total:
            firsts = torch.repeat_interleave(k.cumsum(0) - k + r.kept, k, output_size=total)
            is_used = torch.arange(total, dtype=torch.int64, device=k.device) < firsts
            ids, gains, share = ids[is_used], gains[is_used], share[is_used]
        ends = torch.cat([r.kept.new_zeros(1), r.kept.cumsum(0)])
        return Picks(
            ids=ids, gains=gains, offsets=ends, value=r.value, bound=r.bound, random=r.random, effective_k=r.effective,
            owner=r.owner, share=share,
        )  # fmt: skip
