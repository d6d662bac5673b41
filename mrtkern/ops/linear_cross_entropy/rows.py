"""The rows and targets of a call that count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entries:
    """Targets that count, of the rows that have one."""

    rows: Tensor | None  # [T'] rows of hidden, ascending; None: every row
    which: Tensor | None  # [E'] entries of the caller's, ascending; None: every entry
    targets: Tensor  # [E'] int64, none ignored
    offsets: Tensor | None  # [T' + 1]; None: one target per row
    weight: Tensor  # [E'] float32, or float64 for float64

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
        part = self.span(rows)
        offsets = None if self.offsets is None else self.offsets[rows.start : rows.stop + 1] - part.start
        return Entries(None, None, self.targets[part], offsets, self.weight[part])

    def spread(self, value: Tensor, count: int) -> Tensor:
        """One number per entry that counts, as one per entry of the caller's, 0 for the others."""
        return value if self.which is None else value.new_zeros(count).index_copy_(0, self.which, value)


def entries(targets: Tensor, offsets: Tensor | None, weight: Tensor, counts: Tensor) -> Entries:
    """Those where `counts` [E] is True, and the rows that keep one."""
    if bool(counts.all()) and (offsets is None or bool((offsets.diff() > 0).all())):
        return Entries(None, None, targets.contiguous(), offsets, weight.contiguous())
    which = counts.nonzero().view(-1)
    if offsets is None:
        return Entries(which, which, targets[which], None, weight[which])
    owner = torch.repeat_interleave(torch.arange(offsets.shape[0] - 1, device=offsets.device), offsets.diff())
    rows, sizes = owner[which].unique_consecutive(return_counts=True)
    return Entries(rows, which, targets[which], torch.nn.functional.pad(sizes.cumsum(0), (1, 0)), weight[which])
