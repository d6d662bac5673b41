"""Problems of like sizes side by side: rows of one batch, padded to its largest problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mrtkern import lattice

BYTES = 64 << 20  # of the rows of a batch in float64, where one problem does not need more


@dataclass(frozen=True)
class Ground:
    """What all problems are picked from."""

    x: Tensor | None  # [T, D] rows
    similarity: Tensor | None  # [N, N] instead, of one problem
    offsets: Tensor  # [B + 1] int64
    metric: str
    quality: Tensor | None  # [T] float64
    mask: Tensor | None  # [T] bool


@dataclass
class Batch:
    """b problems of up to n rows. Padding is never open, and similar to nothing."""

    numbers: Tensor  # [b] of the problems
    rows: Tensor  # [b, n] int64 rows of the ground, 0 where there is none
    is_row: Tensor  # [b, n] bool
    is_open: Tensor  # [b, n] bool: may be picked
    quality: Tensor  # [b, n] float64, 0 for padding
    points: Tensor | None  # [b, n, D] float64 integers on the lattice; None: similarities were given
    table: Tensor | None  # [b, n, n] float64 similarities, where there is room for them or they were given
    base: float  # similarity of points p, q: max(base + <p, q>, 0) / scale
    scale: float
    features: Tensor | None = None  # [b, n, D] float64 as the caller has them

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def similar(self, j: Tensor) -> Tensor:
        """Similarities [b, n] of all rows with row j [b] of each problem; 0 for padding."""
        if self.table is not None:
            return self.table[torch.arange(len(j), dtype=torch.int64, device=j.device), j]
        assert self.points is not None
        dots = torch.matmul(self.points, of_each(self.points, j)[..., None])[..., 0]
        return torch.where(self.is_row, (self.base + dots).clamp(min=0) / self.scale, 0.0)

    def own(self) -> Tensor:
        """Similarities [b, n] of rows with themselves."""
        if self.table is not None:
            return self.table.diagonal(dim1=1, dim2=2)
        assert self.points is not None
        return torch.where(self.is_row, (self.base + self.points.square().sum(dim=2)) / self.scale, 0.0)

    def among(self, places: Tensor) -> Tensor:
        """Similarities [b, K, K] of rows at places [b, K] with each other, 0 for those at -1."""
        is_there = places >= 0
        at = places.clamp(min=0)
        if self.table is not None:
            rows = self.table.gather(1, at[:, :, None].expand(-1, -1, self.table.shape[2]))
            found = rows.gather(2, at[:, None, :].expand(-1, at.shape[1], -1))
        else:
            assert self.points is not None
            points = self.points.gather(1, at[:, :, None].expand(-1, -1, self.points.shape[2]))
            found = (self.base + torch.matmul(points, points.mT)).clamp(min=0) / self.scale
        return found * (is_there[:, :, None] & is_there[:, None, :])

    def totals(self) -> Tensor:
        """sum over all rows i of similarity (i, j), for each j [b, n]."""
        if self.table is not None:
            return summed(self.table, 1)
        assert self.points is not None
        if self.base == 0.0:  # clamped: no shorter way
            found = torch.zeros_like(self.quality)
            for i in range(self.rows.shape[1]):
                found += self.similar(torch.full_like(self.numbers, i)) * self.is_row[:, i, None]
            return found
        dots = torch.matmul(self.points, self.points.sum(dim=1)[..., None])[..., 0]
        sizes = self.is_row.sum(dim=1, keepdim=True).double()  # or the product would be float32
        return torch.where(self.is_row, (self.base * sizes + dots) / self.scale, 0.0)


def of_each(values: Tensor, j: Tensor) -> Tensor:
    """values[b, j[b]] for each problem."""
    return values[torch.arange(len(j), dtype=torch.int64, device=j.device), j]


def summed(values: Tensor, dim: int) -> Tensor:
    """The sum over a dimension in one order, whatever the library's is here: equal rows have equal sums everywhere."""
    total = values.new_zeros([size for d, size in enumerate(values.shape) if d != dim], dtype=values.dtype)
    for part in values.unbind(dim):
        total = total + part
    return total


def at_places(values: Tensor, places: Tensor) -> Tensor:
    """values [b, n] at places [b, K], 0 at -1."""
    return torch.where(places >= 0, values.gather(1, places.clamp(min=0)), 0.0)


def batches(ground: Ground, needs_table: bool, needs_features: bool) -> Iterator[Batch]:
    """All problems, those of like sizes together."""
    sizes = ground.offsets.diff()
    order = sizes.sort(stable=True).indices
    width = 1 if ground.x is None else ground.x.shape[1]
    first, ordered = 0, sizes[order].tolist()
    while first < len(ordered):
        last = first + 1
        while last < len(ordered) and (last + 1 - first) * ordered[last] * max(width, ordered[last]) * 8 <= BYTES:
            last += 1
        yield made(ground, order[first:last], needs_table, needs_features)
        first = last


def made(ground: Ground, numbers: Tensor, needs_table: bool, needs_features: bool) -> Batch:
    """A batch of these problems."""
    firsts, sizes = ground.offsets[numbers], ground.offsets.diff()[numbers]
    n = int(sizes.max()) if len(sizes) else 0
    place = torch.arange(n, dtype=torch.int64, device=numbers.device)
    is_row = place < sizes[:, None]
    rows = torch.where(is_row, firsts[:, None] + place, 0)
    is_open = is_row if ground.mask is None else is_row & ground.mask[rows]
    ones = torch.ones(rows.shape, dtype=torch.float64, device=rows.device)
    quality = torch.where(is_row, ones if ground.quality is None else ground.quality[rows], 0.0)
    if ground.similarity is not None:
        table = ground.similarity.double()[None]
        return Batch(numbers, rows, is_row, is_open, quality=quality, points=None, table=table, base=0.0, scale=1.0)
    assert ground.x is not None
    x = ground.x[rows.reshape(-1)]
    D = x.shape[1]
    points = lattice.quantise(x).double().view(*rows.shape, D) * is_row[..., None]
    one = float(lattice.unit_square(D))
    base, scale = (one, 2 * one) if ground.metric == "shifted_cosine" else (0.0, one)
    features = x.double().view(*rows.shape, D) * is_row[..., None] if needs_features else None
    batch = Batch(
        numbers, rows, is_row, is_open, quality=quality, points=points, table=None, base=base, scale=scale,
        features=features,
    )  # fmt: skip
    if needs_table or n <= D:
        dots = torch.matmul(points, points.mT)
        is_pair = is_row[:, :, None] & is_row[:, None, :]
        batch.table = torch.where(is_pair, (base + dots).clamp_(min=0) / scale, 0.0)
    return batch
