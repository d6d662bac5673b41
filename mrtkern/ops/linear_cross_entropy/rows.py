"""The rows and targets of a call that count.

Where values may be read, the others are dropped before the first product. Where that would make the host wait for a
device, sizes must not depend on values: every row is multiplied, those that do not count as zeros, and the kernels
neither read their logits nor leave a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrtkern.ops.linear_cross_entropy.problem import NO_TARGET


@dataclass(frozen=True)
class Entries:
    """Targets that count, of the rows that have one; with `keeps` all targets of all rows, NO_TARGET where ignored."""

    rows: Tensor | None  # [T'] rows of hidden, ascending; None: every row
    which: Tensor | None  # [E'] entries of the caller's, ascending; None: every entry
    targets: Tensor  # [E'] int64
    offsets: Tensor | None  # [T' + 1]; None: one target per row
    weight: Tensor  # [E'] float32, or float64 for float64
    keeps: Tensor | None = None  # [T] bool: which rows count, when those that do not are still there

    def num_rows(self, T: int) -> int:
        """How many of T rows count."""
        return T if self.rows is None else self.rows.shape[0]

    def span(self, rows: slice) -> slice:
        """The entries of some of the rows that count."""
        if self.offsets is None:
            return rows
        return slice(int(self.offsets[rows.start]), int(self.offsets[rows.stop]))

    def chunk(self, rows: slice) -> Entries:
        """Those of some of the rows that count, numbered from 0 again."""
        if self.keeps is not None and self.offsets is not None:  # which entries are theirs only the device knows
            return Entries(None, None, self.targets, self.offsets[rows.start : rows.stop + 1], self.weight)
        part = self.span(rows)
        offsets = None if self.offsets is None else self.offsets[rows.start : rows.stop + 1] - part.start
        return Entries(None, None, self.targets[part], offsets, self.weight[part])

    def put(self, total: Tensor, rows: slice, part: Tensor) -> None:
        """Into one number per entry, zeros before, what the entries of `chunk(rows)` have."""
        if self.keeps is not None and self.offsets is not None:
            total += part  # 0 outside these rows
        else:
            total[self.span(rows)] = part

    def spread(self, value: Tensor, count: int) -> Tensor:
        """One number per entry that counts, as one per entry of the caller's, 0 for the others."""
        return value if self.which is None else value.new_zeros(count).index_copy_(0, self.which, value)


def entries(
    targets: Tensor, offsets: Tensor | None, weight: Tensor, valid: Tensor, counts: Tensor, may_wait: bool
) -> Entries:  # fmt: skip
    """Those where `counts` [E] is True, and the rows that keep one. `valid` [E]: not ignored."""
    if not may_wait:
        weight = torch.where(counts, weight, 0)
        return Entries(None, None, torch.where(valid, targets, NO_TARGET), offsets, weight, _rows_with(counts, offsets))
    if bool(counts.all()) and (offsets is None or bool((offsets.diff() > 0).all())):
        return Entries(None, None, targets.contiguous(), offsets, weight.contiguous())
    which = counts.nonzero().view(-1)
    if offsets is None:
        return Entries(which, which, targets[which], None, weight[which])
    owner = torch.repeat_interleave(offsets.diff())  # of each entry
    rows, sizes = owner[which].unique_consecutive(return_counts=True)
    return Entries(rows, which, targets[which], torch.nn.functional.pad(sizes.cumsum(0), (1, 0)), weight[which])


def _rows_with(counts: Tensor, offsets: Tensor | None) -> Tensor:
    """Which rows have an entry that counts; offsets are not trusted."""
    if offsets is None:
        return counts
    before = torch.nn.functional.pad(counts.cumsum(0), (1, 0))[offsets.clamp(0, counts.shape[0])]
    return before.diff() > 0
