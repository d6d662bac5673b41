"""What a selection returns: integers from a backend, turned into the user's units in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mrtkern.ops.facility_location.explain import Again, Comparison, Explanation, compared, elbow, explained

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
    _again: ClassVar[Any] = None  # Again, of an instance: no field, because a selection is its numbers

    def explain(self, id: int) -> Explanation:
        """What a kept row added, whom it stands for, and who would do so instead. Needs the rows: the result of
        facility_location holds what it was called with until it is copied or pickled. Evaluates the other picks."""
        return explained(self, id, self._again)

    def compare(self, other: Selection) -> Comparison:
        """Which ids both have, and what F of this one is of the other's."""
        return compared(self, other)

    def elbow(self) -> int:
        """The number of picks, rows of a start left out, after which the curve of F bends most. Of one problem."""
        if self.offsets is not None:
            raise ValueError("Selection.elbow: selection must be of one problem, got groups")
        return elbow(self.gains)

    def known(self, again: Again) -> Selection:
        """Itself, and it knows how other picks of the same rows are evaluated."""
        object.__setattr__(self, "_again", again)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_again"}

    def __repr__(self) -> str:
        """A line: millions of numbers help nobody."""
        groups = "" if self.offsets is None else f" in {len(self.offsets) - 1} groups"
        parts = (
            (f"value {float(self.value.mean()):.6g}", f"skill {float(self.skill.mean()):.3f}")
            if self.value.numel()
            else ()
        )
        return f"Selection({', '.join((f'{len(self.ids)} ids{groups}', *parts))})"


def finish(picks: Picks, step: Tensor, slack: Tensor, is_grouped: bool) -> Selection:
    """From fixed-point steps to the user's units."""
    kept = picks.offsets[1:] - picks.offsets[:-1]
    value = picks.value * step
    upper_bound = picks.bound * step + slack
    random = picks.random * (step / RANDOM_DRAWS)
    has_choice = picks.random < RANDOM_DRAWS * picks.bound  # or nothing can be better than chance, and skill is 1
    room = torch.where(has_choice, upper_bound - random, 1.0)
    skill = torch.where(has_choice, (value - random) / room, 1.0)
    each = torch.repeat_interleave(step, kept, output_size=picks.ids.shape[0]) if step.ndim else step
    gains = picks.gains * each
    return Selection(
        ids=picks.ids,
        gains=gains,
        offsets=picks.offsets if is_grouped else None,
        value=value if is_grouped else value[0],
        upper_bound=upper_bound if is_grouped else upper_bound[0],
        skill=skill if is_grouped else skill[0],
        owner=picks.owner,
        share=picks.share,
        effective_k=picks.effective_k if is_grouped else picks.effective_k[0],
    )
