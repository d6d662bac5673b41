"""Sums over entries that share an id, such as the responses of a prompt: the same bits on every run."""

from __future__ import annotations

import torch
from torch import Tensor


class IdGroups:
    """Entries [R] with ids [R] int64 in any order; without ids each entry is a group of its own.

    Groups are in ascending order of their ids, and sums run in the order of the entries. Nothing waits for a device.
    """

    def __init__(self, ids: Tensor | None) -> None:
        self.has_ids = ids is not None
        if ids is None:
            return
        ids, self.order = ids.sort(stable=True)
        starts = torch.ones_like(ids)
        starts[1:] = ids[1:] != ids[:-1]
        self.number = starts.sum()  # of groups, 0-d
        self.segment = starts.cumsum(0) - 1  # [R] of each entry in sorted order
        self.ends = torch.searchsorted(self.segment, torch.arange(len(ids) + 1, dtype=torch.int64, device=ids.device))

    def segments(self, x: Tensor) -> Tensor:
        """Sums [R]: one per group, then zeros."""
        if not self.has_ids:
            return x
        return torch.segment_reduce(x[self.order], "sum", offsets=self.ends, axis=0, unsafe=True, initial=0.0)

    def spread(self, x: Tensor) -> Tensor:
        """For each entry, what its group has in `segments` [R]."""
        return torch.empty_like(x).index_copy_(0, self.order, x[self.segment]) if self.has_ids else x

    def sums(self, x: Tensor) -> Tensor:
        """For each entry, the sum of x over its group [R]."""
        return self.spread(self.segments(x))

    def number_with(self, x: Tensor) -> Tensor:
        """How many groups have a positive sum."""
        return (self.segments(x) > 0).sum()
