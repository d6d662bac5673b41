"""Random numbers by counting: a 64-bit hash of (seed, draw, group key, position), the same wherever it is computed.

Rows ranked by their hash are a uniform random order of the group; its first K rows are a uniform draw without
replacement. No state, so the picks of a prompt depend on neither its batch, its shard nor the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers of the draws. Each use has its own, or one would predict the other: a centre filled in at random would
# always be the member drawn from its stratum.
# Rows kept or filled in; the random draws of `skill`; a member of each stratum; the rows on which draws are measured;
# the candidates that a pick of stochastic greedy tries.
KEPT, CHANCE, STRATUM, SAMPLE, TRIED = 0, 1, 2, 3, 4


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


GOLDEN = _signed(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, the step of SplitMix64 (Steele, Lea, Flood 2014)
MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def mix(h: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 (two's complement, products wrap): a bijection that scatters every bit."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        h = (h ^ _shifted(h, shift)) * multiplier
    return h ^ _shifted(h, 31)


def _shifted(h: Tensor, count: int) -> Tensor:
    return (h >> count) & ((1 << (64 - count)) - 1)


def stream(seed: int, draw: int, group_key: Tensor) -> Tensor:
    """One per group, int64."""
    return mix(mix(torch.full_like(group_key, _signed(seed + (draw + 1) * GOLDEN))) ^ mix(group_key))


def at(stream: Tensor, position: Tensor) -> Tensor:
    """The number at a position of a stream."""
    return mix(stream + (position + 1) * GOLDEN)


def keys(seed: int, draw: int, group_key: Tensor, position: Tensor) -> Tensor:
    """Rank keys, int64, smallest first; `group_key` and `position` (row within its group) broadcast."""
    return at(stream(seed, draw, group_key), position)
