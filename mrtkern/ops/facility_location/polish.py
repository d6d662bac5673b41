"""Swaps after greedy: a kept row for another one, while F rises, and the kept rows in greedy's order again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _progress

MOST = 2**62  # swaps, where nobody counts


class Polished(NamedTuple):
    """Kept rows without those of `start`, their gains in steps, F in steps."""

    ids: Tensor
    gains: Tensor
    value: int
    is_interrupted: bool


def polished(
    pairs: Any, ids: Tensor, num_fixed: int, *, bonus: Tensor, mask: Tensor, limits: Any, most: int, ends_whole: bool
) -> Polished:
    """pairs: _C.Oracle and _C.PairSource; ids: all that are kept, the first num_fixed stay; bonus, mask [N] on the CPU.
    ends_whole: Ctrl-C returns what was swapped so far."""
    pairs.reset()
    narrow, is_interrupted = ids.cpu().int(), False
    swaps = _C.Swaps(
        pairs=pairs, kept=narrow.data_ptr(), count=len(narrow), num_fixed=num_fixed, N=len(bonus),
        bonus=bonus.data_ptr(), is_open=mask.data_ptr(), limits=limits,
    )  # fmt: skip
    try:
        swaps.run(most=MOST if most < 0 else most, progress=_progress.current())
    except KeyboardInterrupt:
        if not ends_whole:
            raise
        is_interrupted = True
    return ordered(pairs, torch.tensor(swaps.kept, dtype=torch.int64, device="cpu"), num_fixed, bonus, is_interrupted)


def ordered(pairs: Any, kept: Tensor, num_fixed: int, bonus: Tensor, is_interrupted: bool) -> Polished:
    """Kept rows in greedy's order; those that gain nothing last, as they were."""
    pairs.reset()
    is_kept = torch.zeros(len(bonus), dtype=torch.bool, device="cpu")
    is_kept[kept[num_fixed:]] = True
    greedy = _C.LazyGreedy(pairs, bonus=bonus.data_ptr(), is_open=is_kept.data_ptr(), limits=_C.Limits())
    start, K = kept[:num_fixed].int(), len(kept) - num_fixed
    greedy.start(ids=start.data_ptr(), count=len(start))
    greedy.pick(until=K, k=K, least=0, enough=2**63 - 1, progress=None)
    ids, gains = torch.empty((2, greedy.picked), dtype=torch.int64, device="cpu")
    greedy.copy_picks(ids=ids.data_ptr(), gains=gains.data_ptr())
    rest = kept[num_fixed:][~torch.isin(kept[num_fixed:], ids)]
    return Polished(torch.cat([ids, rest]), torch.cat([gains, torch.zeros_like(rest)]), greedy.value, is_interrupted)
