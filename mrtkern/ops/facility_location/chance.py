"""The value of random picks, the zero of `skill`: the mean of seeded uniform draws of as many rows.

Each draw is a window of one random order of the candidates, within limits what they admit of it from there on. Beyond
4,096 rows to cover, a seeded uniform sample of that many stands for all of them: sum of weights / sum of their weights
times what covers it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrtkern import _random
from mrtkern.ops.facility_location.selection import RANDOM_DRAWS

SAMPLED_ROWS = 4096


def keys(seed: int, draw: int, group_key: Tensor, count: int) -> Tensor:
    """Rank keys of the rows of one problem; group_key 0-d."""
    return _random.keys(seed, draw, group_key, torch.arange(count, dtype=torch.int64, device=group_key.device))


def draws(key: Tensor, mask: Tensor, start: Tensor, admitted: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """RANDOM_DRAWS sets beside `start`: what is admitted of one random order from different places on (cyclic)."""
    order = key.sort(stable=True).indices
    order = order[mask[order] & ~torch.isin(order, start)]
    firsts = [r * len(order) // RANDOM_DRAWS for r in range(RANDOM_DRAWS)]
    return [torch.cat([start, admitted(order.roll(-first))]) for first in firsts]


def sampled(weight: Tensor | None, M: int, seed: int, group_key: Tensor) -> tuple[Tensor, float]:
    """The rows of which a draw's value is asked, ascending, and what it is multiplied by. weight [M] or None: ones."""
    everyone = torch.arange(M, dtype=torch.int64, device=group_key.device)
    if M <= SAMPLED_ROWS:
        return everyone, 1.0
    rows = keys(seed, _random.SAMPLE, group_key, M).sort(stable=True).indices[:SAMPLED_ROWS].sort().values
    if weight is None:
        return rows, M / SAMPLED_ROWS
    total, part = (float(values.double().sum()) for values in (weight, weight[rows]))
    return (rows, total / part) if part > 0 else (everyone, 1.0)


def value(
    cover: Callable[[Tensor, Tensor], int], bonus: Tensor, sets: list[Tensor], rows: Tensor, factor: float
) -> int:
    """The sum over the draws of F, in steps; cover(ids, rows): what these candidates cover of these rows."""
    return sum(int(bonus[ids].sum()) + round(factor * cover(ids, rows)) for ids in sets)
