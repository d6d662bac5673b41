"""What a selection returns: integers from a backend, turned into the user's units in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mrtkern import lattice

RANDOM_DRAWS = 8  # uniform draws whose mean value is the zero of `skill`


class Picks(NamedTuple):
    """A backend's answer for B problems; values in fixed-point steps, exact."""

    ids: Tensor  # [Σ kept] int64, packed, in pick order
    gains: Tensor  # [Σ kept] int64, 0 for picks that only fill
    offsets: Tensor  # [B + 1] int64
    value: Tensor  # [B] int64
    bound: Tensor  # [B] int64
    random: Tensor  # [B] int64, sum over RANDOM_DRAWS draws
    effective_k: Tensor  # [B] int64
    owner: Tensor  # [T] int64
    share: Tensor  # [Σ kept] float32


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Kept rows of one problem (per-problem fields 0-d, `offsets` None) or of B groups (fields [B]; ids, gains packed).

    ids [Σ kept] int64: row numbers of the input in pick order; gains float64: what each pick added (0 when it only
    fills).
    value, upper_bound, skill [B] float64: F of the picks, a bound on the best possible F, and
    (F - random) / (bound - random).
    owner [T] int64: the kept row that is most similar to each row (-1: covered by nothing); a kept row owns itself.
    share float32, aligned with ids: the part of the group that each kept row owns.
    effective_k [B] int64: picks with gain > 0.
    reward_overlap [B] float64: part of the picks among the largest rewards, where a method weighed rewards (None
    elsewhere).
    """

    ids: Tensor
    gains: Tensor
    offsets: Tensor | None
    value: Tensor
    upper_bound: Tensor
    skill: Tensor
    owner: Tensor
    share: Tensor
    effective_k: Tensor
    reward_overlap: Tensor | None = None

    def __repr__(self) -> str:
        """A line: millions of numbers help nobody."""
        groups = "" if self.offsets is None else f" in {len(self.offsets) - 1} groups"
        parts = (
            (f"value {float(self.value.mean()):.6g}", f"skill {float(self.skill.mean()):.3f}")
            if self.value.numel()
            else ()
        )
        return f"Selection({', '.join((f'{len(self.ids)} ids{groups}', *parts))})"


class Units(NamedTuple):
    """The value of one fixed-point step, float64 [B] or 0-d, and how far rounding can have moved each optimum, [B]."""

    step: Tensor
    slack: Tensor


def feature_error(D: int, metric: str) -> float:
    """Largest error of one pair's similarity that comes from rounding the features."""
    return lattice.cosine_error(D) / (2.0 if metric == "shifted_cosine" else 1.0)


def units(sizes: Tensor, kept: Tensor, maximum: Tensor, pair_error: float, has_bonus: bool) -> Units:
    """Step and slack from rows per problem, picks per problem, the largest w * a, and the features' error per pair."""
    step = maximum / lattice.STEPS
    half = 0.5 + 2.0**-6  # half a step, and the roundings of the float32 product before it
    slack = sizes * (maximum * pair_error + half * step)
    return Units(step, slack + kept * half * step if has_bonus else slack)


def finish(picks: Picks, u: Units, is_grouped: bool) -> Selection:
    """From fixed-point steps to the user's units."""
    kept = picks.offsets[1:] - picks.offsets[:-1]
    value = picks.value * u.step
    upper_bound = picks.bound * u.step + u.slack
    random = picks.random * (u.step / RANDOM_DRAWS)
    has_choice = picks.random < RANDOM_DRAWS * picks.bound  # or nothing can be better than chance, and skill is 1
    room = torch.where(has_choice, upper_bound - random, 1.0)
    skill = torch.where(has_choice, (value - random) / room, 1.0)
    step = torch.repeat_interleave(u.step, kept, output_size=picks.ids.shape[0]) if u.step.ndim else u.step
    gains = picks.gains * step
    if is_grouped:
        return Selection(
            picks.ids, gains, picks.offsets, value, upper_bound, skill, picks.owner, picks.share, picks.effective_k
        )
    fields = (value[0], upper_bound[0], skill[0], picks.owner, picks.share, picks.effective_k[0])
    return Selection(picks.ids, gains, None, *fields)


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


def maximum(weight: Tensor | None, quality: Tensor | None, rows: Tensor, candidates: Tensor) -> Tensor:
    """max(w) * max(a) of each problem, float64 [B]; 1 where that is 0. One number (0-d) where nothing is weighed."""
    if weight is None and quality is None:
        return torch.ones((), dtype=torch.float64, device=rows.device)
    product = largest(weight, rows) * largest(quality, candidates)
    return torch.where(product > 0, product, 1.0)
