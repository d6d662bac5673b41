"""Seeded problems, in blocks of 1,000: rows of raw features, how many of them to select, and by which rule.

    h        the counting hash of mrtkern/_random.py, seed the block, group key the problem, position the place in it
    size     N = h mod 2**32 scaled to 0 … most, k the same of the other half
    feature  a sum of three 21-bit numbers of h, less its mean, times a power of two that its row shares

Whole numbers below 2**24 until the last step: exact, so the same bits everywhere. Copies of earlier rows, near-copies,
zero rows and rows of -1, 0 and 1 are planted, so that equal scores decide. This is the definition; csrc/digest/
problems.cpp repeats it, for speed and for programs without Python.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mrtkern import _dispatch, _random

PROBLEMS = 1000  # of a block
PORTION = 100  # problems made at a time, which bounds the memory
LABELS = 3  # row r of a problem with groups has the label r mod LABELS
KINDS = ("picks", "lists", "kept")
WIDTHS = (48, 17, 129, 3, 100, 8, 384, 16, 31, 64, 1, 256, 32)
MOST, LARGEST = (6, 33, 17, 48), 260
MOST_PICKS = 24
METRICS = ("cosine", "dot", "shifted_cosine", "clamped_cosine")
FILLS = ("index", "coverage", "random", "none")
THRESHOLDS = (1.0, 0.999, 0.9, 0.5)
SIZES, ROWS, VALUES, WEIGHTS = range(3, 7)  # numbers of the draws, beyond those of the selection itself


class Rule(NamedTuple):
    """What the problems of a block have in common."""

    D: int
    most: int  # rows of a problem
    is_grid: bool  # rows of -1, 0, 1
    metric: str  # picks, lists
    fill: str  # picks
    has_weights: bool  # picks: weight, quality and bonus
    precision: str  # lists
    is_self: bool  # lists: otherwise the first half of the rows among the second
    has_groups: bool  # lists
    threshold: float  # kept


class Block(NamedTuple):
    """The first problems of a block: problem p owns rows offsets[p]:offsets[p + 1]."""

    rule: Rule
    offsets: Tensor  # [P + 1] int64
    k: Tensor  # [P] int64
    x: Tensor  # [T, D] float32
    weight: Tensor | None  # [T] float32, as quality and bonus
    quality: Tensor | None
    bonus: Tensor | None


def rule_of(kind: str, block: int) -> Rule:
    """The cycles have different lengths, so that most combinations occur."""
    return Rule(
        D=WIDTHS[block % 13],
        most=LARGEST if block % 20 == 3 else MOST[block % 4],
        is_grid=block % 5 == 4,
        metric=METRICS[2 + block % 2 if kind == "picks" else block % 4],
        fill=FILLS[block // 2 % 4],
        has_weights=block % 3 == 1,
        precision="int16" if block // 3 % 2 == 1 else "exact",
        is_self=block % 3 != 1,
        has_groups=block % 5 == 2,
        threshold=THRESHOLDS[block % 4],
    )


def make(kind: str, block: int, count: int = PROBLEMS) -> Block:
    """The first `count` problems of a block, by the compiled kernels where there are some."""
    if isinstance(_dispatch.load("facility_location", "cpu"), str):
        return define(kind, block, count)
    import mrtkern._C as _C

    rule, number = rule_of(kind, block), KINDS.index(kind)
    offsets, k = (torch.empty(size, dtype=torch.int64, device="cpu") for size in (count + 1, count))
    _C.digest_sizes(number, block, count, offsets.data_ptr(), k.data_ptr())
    T = int(offsets[-1])
    x, rest = (torch.empty(shape, dtype=torch.float32, device="cpu") for shape in ((T, rule.D), (3, T)))
    _C.digest_rows(number, block, count, offsets.data_ptr(), x.data_ptr(), [row.data_ptr() for row in rest])
    return Block(rule, offsets, k, x, *(rest if has_weights(kind, rule) else (None,) * 3))


def has_weights(kind: str, rule: Rule) -> bool:
    """Whether weight, quality and bonus are made."""
    return kind == "picks" and rule.has_weights


def define(kind: str, block: int, count: int = PROBLEMS) -> Block:
    """What `make` makes, in torch: the definition."""
    rule, numbers = rule_of(kind, block), _counted(count)
    h = _hash(kind, block, SIZES, torch.zeros_like(numbers), numbers)
    sizes = _below(h, rule.most + 1)
    most = torch.zeros_like(sizes) if kind == "kept" else (sizes + (kind == "lists")).clamp(max=MOST_PICKS)
    k = _below(h >> 32, most + 1)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    problem = numbers.repeat_interleave(sizes)
    position = _counted(len(problem)) - offsets[problem]
    portions = [slice(int(offsets[p]), int(offsets[min(p + PORTION, count)])) for p in range(0, count, PORTION)]
    x = torch.cat([_rows(kind, block, rule, problem[rows], position[rows]) for rows in portions])
    if not has_weights(kind, rule):
        return Block(rule, offsets, k, x, None, None, None)
    h = _hash(kind, block, WEIGHTS, problem, position)
    weight, quality = (((h >> shift & (2**22 - 1)) + 1).float() * 2.0**-22 for shift in (0, 22))
    return Block(rule, offsets, k, x, weight, quality, (h >> 44 & 1023).float() * 2.0**-14)


def _counted(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64, device="cpu")


def _hash(kind: str, block: int, draw: int, problem: Tensor, position: Tensor) -> Tensor:
    return _random.keys(block, draw + 4 * KINDS.index(kind), problem, position)


def _below(h: Tensor, count: Tensor | int) -> Tensor:
    """0 … count - 1, from the lower 32 bits of h."""
    return (h & (2**32 - 1)) * count >> 32


def _rows(kind: str, block: int, rule: Rule, problem: Tensor, position: Tensor) -> Tensor:
    """Rows [T, D] of some problems; T rows, given by problem and position in it [T]."""
    D = rule.D
    h = _hash(kind, block, VALUES, problem[:, None], position[:, None] * D + _counted(D))  # [T, D]
    spread = (h & (2**21 - 1)) + (h >> 21 & (2**21 - 1)) + (h >> 42 & (2**21 - 1)) - 3 * 2**20
    signs = (((h >> 40 & (2**24 - 1)) * 3 >> 24) - 1) * 2**20
    g = _hash(kind, block, ROWS, problem, position)  # [T]
    choice = g & 15
    is_made = (choice <= 1) & (position > 0)  # of an earlier row
    is_zero = (choice == 3) & (g >> 4 & 3 == 0)
    is_grid = (choice == 2) | rule.is_grid
    x = torch.where(is_grid[:, None], signs, spread).masked_fill(is_zero[:, None], 0)
    source = _counted(len(g)) - position + _below(g >> 32, position)
    added = torch.where(choice == 1, 1, 0)[:, None] * (spread >> (8 + (g >> 4 & 7))[:, None])
    for place in range(1, int(position.max()) + 1 if len(position) else 0):  # sources first
        rows = (is_made & (position == place)).nonzero()[:, 0]
        x[rows] = x[source[rows]] + added[rows]
    scale = ((g >> 8 & 7) - 24 + 127).int() << 23  # the bits of a power of two
    return x.float() * scale.view(torch.float32)[:, None]
