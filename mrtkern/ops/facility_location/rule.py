"""How rows are picked."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

FILLS = ("index", "coverage", "random", "none")


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """What every backend is told beside the ground. None: not asked for; ids are the caller's."""

    k: Tensor  # [B] int64, picks of each problem, at most its open candidates
    total: int  # picks of all problems
    group_key: Tensor  # [B] int64, names each problem to the random numbers
    fill: str  # what follows once no candidate gains
    seed: int
    start: Tensor | None = None  # int64, ids kept already
    picks: Tensor | None = None  # int64, packed: the ids to evaluate, in order, instead of greedy's own
    mask: Tensor | None = None  # bool, one per candidate: may be picked
    weight: Tensor | None = None  # float32, one per row to cover
    quality: Tensor | None = None  # float32, one per candidate
    bonus: Tensor | None = None  # float32, one per candidate
