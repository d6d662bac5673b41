"""Between fixed-point steps and the user's units: how similarities become steps, what a step is worth, and how far
rounding can have moved the optimum."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mrtkern import lattice
from mrtkern.ops.facility_location.ground import Features, Ground, Groups
from mrtkern.ops.facility_location.rule import Rule

MOST_STEPS = 2**53  # sums of steps stay below: float64 holds them exactly


class Units(NamedTuple):
    """float64 [B]; the first two 0-d where nothing is weighed."""

    pair: Tensor  # the largest value that a pair can have
    step: Tensor  # the value of one fixed-point step
    slack: Tensor  # how far rounding can have moved the optimum


def quotient(x: Tensor, divisor: float) -> Tensor:
    """x [...] float64 over a number, rounded once: by a number alone CUDA multiplies with its reciprocal."""
    return x / torch.full((), divisor, dtype=torch.float64, device=x.device)


def fixed_point(s: Tensor, scale: float, weight: Tensor, quality: Tensor, maximum: float) -> Tensor:
    """t [M, N] int64 from similarities s [M, N] in units of 1 / scale; weight [M], quality [N] float32."""
    t = torch.round(s.clamp(min=0).float() * (units(weight, scale, maximum)[:, None] * quality[None, :]))
    return t.clamp(max=lattice.STEPS).long()


def units(weight: Tensor, scale: float, maximum: float) -> Tensor:
    """u [M] float32: what a similarity of 1 / scale is worth in steps, before the candidate's quality."""
    return quotient(weight.double() * lattice.STEPS, scale * maximum).float()


def least_steps(gain: float, step: float) -> int:
    """The fewest steps that are worth `gain` as they are reported, which is times `step`; at most MOST_STEPS."""
    if gain <= 0:
        return 0
    if gain >= MOST_STEPS * step:
        return MOST_STEPS
    least = math.ceil(gain / step)
    while (least - 1) * step >= gain:  # the quotient is rounded
        least -= 1
    while least * step < gain:
        least += 1
    return least


def enough_steps(rule: Rule, M: int) -> float:
    """Steps that the rows of one problem cover once `stop_coverage` of the most that they can cover is covered."""
    if rule.stop_coverage is None:
        return math.inf
    weight = rule.weight
    total = float(M) if weight is None or not M else float(weight.double().sum() / (float(weight.max()) or 1.0))
    return math.ceil(rule.stop_coverage * total * lattice.STEPS)


def feature_error(D: int, metric: str) -> float:
    """Largest error of one pair's similarity that comes from rounding the features."""
    return lattice.cosine_error(D) / (2.0 if metric == "shifted_cosine" else 1.0)


def of(ground: Ground, rule: Rule, asked: Tensor | None = None) -> Units:
    """The units of each problem. asked [B] int64: picks that were asked for, where the problem has too few."""
    maximum = _maximum(ground, rule)
    pair = maximum * ground.scale
    step = quotient(pair, lattice.STEPS)
    half = 0.5 + 2.0**-6  # half a step, and the roundings of the float32 product before it
    error = feature_error(ground.x.shape[1], ground.metric) if isinstance(ground, (Features, Groups)) else 0.0
    slack = ground.covered.diff() * (pair * error + half * step)
    if rule.bonus is not None:
        picked = (rule.k if asked is None else asked) + (0 if rule.start is None else rule.start.shape[0])
        slack = slack + picked * half * step
    return Units(pair, step, slack)


def largest(values: Tensor | None, offsets: Tensor) -> Tensor:
    """Largest entry of each group, float64 [B]; 1 without values and for empty groups."""
    B = offsets.shape[0] - 1
    ones = torch.ones(B, dtype=torch.float64, device=offsets.device)
    if values is None:
        return ones
    sizes = offsets[1:] - offsets[:-1]
    group = torch.repeat_interleave(sizes, output_size=values.shape[0])
    found = torch.full_like(ones, -math.inf).scatter_reduce(0, group, values.double(), "amax")
    return torch.where(sizes > 0, found, ones)


def _maximum(ground: Ground, rule: Rule) -> Tensor:
    """max(w) * max(a) of each problem, float64 [B]; 1 where that is 0. One number (0-d) where nothing is weighed."""
    if rule.weight is None and rule.quality is None:
        return torch.ones((), dtype=torch.float64, device=rule.k.device)
    product = largest(rule.weight, ground.covered) * largest(rule.quality, ground.offsets)
    return torch.where(product > 0, product, 1.0)
