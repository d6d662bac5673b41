"""How rows are picked."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mrtkern.ops.facility_location.limits import Limits

FILLS = ("index", "coverage", "random", "none")
INTERRUPTS = ("raise", "prefix")
METHODS = ("lazy", "stochastic")


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a long call runs. Nothing here changes a pick."""

    checkpoint: str | None = None  # file that holds the picks so far
    on_interrupt: str = "raise"
    max_memory: int | None = None  # bytes beyond the inputs; None: half of the machine's


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
    stop_gain: float | None = None  # picks that gain less are not made
    stop_fraction: float | None = None  # nor those that gain less than this part of the first
    stop_coverage: float | None = None  # nor those after this part of what any set can cover is covered
    limits: Limits | None = None
    method: str = "lazy"  # or "stochastic": of a sample of the candidates
    polish: int = 0  # swaps after greedy, at most; -1: until none helps
    epsilon: float = 0.01  # of stochastic: what its expected guarantee loses
    course: Course = Course()
