"""Objectives: the gain of every row, kept current while rows are taken. A class each; __init__.py has the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mrtkern import lattice
from mrtkern.objectives.batches import Batch, at_places, of_each, summed

NOT_SEMIDEFINITE = 1e-6  # below the identity by more than roundings


@dataclass(frozen=True)
class Options:
    """Numbers of the objectives."""

    lam: float = 0.5
    theta: float = 1.0
    saturation: float = 0.25


def picked(batch: Batch, places: Tensor) -> Tensor:
    """[b, n] 1 at these places, else 0."""
    return torch.zeros_like(batch.quality).scatter_add_(1, places.clamp(min=0), (places >= 0).double())


class Objective:
    """Of one batch, nothing taken yet. Gains are [b, n] float64; `take` is told which problems go on."""

    is_submodular: ClassVar[bool] = True  # and monotone: value + the k largest gains is a bound
    needs_table: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False

    def __init__(self, batch: Batch, options: Options) -> None:
        self.batch, self.options = batch, options

    def gains(self) -> Tensor:
        """What each row would add now."""
        raise NotImplementedError

    def decides(self) -> Tensor:
        """What grows with the gains, where a library's function makes these: its last bits decide nothing."""
        return self.gains()

    def take(self, j: Tensor, goes_on: Tensor) -> None:
        """Row j [b] is picked, of the problems that go on [b]."""
        raise NotImplementedError

    def value(self, places: Tensor) -> Tensor:
        """F [b] of the rows at places [b, K], -1 for none, whatever was taken. Of what is submodular."""
        raise NotImplementedError

    def bound_of_value(self, value: Tensor, k: Tensor) -> Tensor:
        """The bound [b] of an objective whose gains are none."""
        del k
        return torch.full_like(value, math.nan)


class SaturatedCoverage(Objective):
    """State: what each row can still be covered."""

    needs_table = True

    def __init__(self, batch: Batch, options: Options) -> None:
        super().__init__(batch, options)
        assert batch.table is not None
        self.pairs = batch.table * batch.quality[:, None, :]  # [b, covered, candidates]
        self.left = options.saturation * summed(self.pairs, 2)

    def gains(self) -> Tensor:
        return summed(torch.minimum(self.pairs, self.left[:, :, None]), 1)

    def take(self, j: Tensor, goes_on: Tensor) -> None:
        column = of_each(self.pairs.mT, j) * goes_on[:, None]
        self.left = self.left - torch.minimum(column, self.left)

    def value(self, places: Tensor) -> Tensor:
        covered = torch.matmul(self.pairs, picked(self.batch, places)[..., None])[..., 0]
        return torch.minimum(covered, self.options.saturation * self.pairs.sum(dim=2)).sum(dim=1)


class GraphCut(Objective):
    """State: how similar each row is to all picks."""

    def __init__(self, batch: Batch, options: Options) -> None:
        super().__init__(batch, options)
        self.totals, self.to_picks = batch.totals(), torch.zeros_like(batch.quality)
        self.own = batch.own()

    def gains(self) -> Tensor:
        return self.totals - self.options.lam * (2 * self.to_picks + self.own)

    def take(self, j: Tensor, goes_on: Tensor) -> None:
        self.to_picks = self.to_picks + self.batch.similar(j) * goes_on[:, None]

    def value(self, places: Tensor) -> Tensor:
        among = self.batch.among(places).sum(dim=(1, 2))
        return at_places(self.totals, places).sum(dim=1) - self.options.lam * among


class FeatureBased(Objective):
    """State: the sum of the picks' features."""

    needs_features = True

    def __init__(self, batch: Batch, options: Options) -> None:
        super().__init__(batch, options)
        assert batch.features is not None
        self.features = batch.features * batch.quality[:, :, None]
        self.sum = torch.zeros_like(self.features[:, 0]) if batch.rows.shape[1] else self.features.sum(dim=1)

    def gains(self) -> Tensor:
        total = torch.zeros_like(self.batch.quality)
        for d in range(self.features.shape[2]):  # one order of the sum, whatever the library does
            before = self.sum[:, d, None]
            total += lattice.square_root(before + self.features[:, :, d]) - lattice.square_root(before)
        return total

    def take(self, j: Tensor, goes_on: Tensor) -> None:
        self.sum = self.sum + of_each(self.features, j) * goes_on[:, None]

    def value(self, places: Tensor) -> Tensor:
        return torch.matmul(picked(self.batch, places)[:, None, :], self.features)[:, 0].sqrt().sum(dim=1)


class LogDet(Objective):
    """State: the squared diagonal that the next row of the Cholesky factor would have, and the factor's rows so far."""

    def __init__(self, batch: Batch, options: Options) -> None:
        super().__init__(batch, options)
        self.squares = 1.0 + options.theta * batch.own() * batch.quality.square()
        self.factors: list[Tensor] = []  # [b, n] each

    def gains(self) -> Tensor:
        return self.squares.log()

    def decides(self) -> Tensor:
        return self.squares

    def take(self, j: Tensor, goes_on: Tensor) -> None:
        row = self.options.theta * self.batch.similar(j) * self.batch.quality * of_each(self.batch.quality, j)[:, None]
        for factor in self.factors:  # one order of the sum
            row = row - factor * of_each(factor, j)[:, None]
        factor = row / lattice.square_root(of_each(self.squares, j))[:, None] * goes_on[:, None]
        self.factors.append(factor)
        left = self.squares - factor.square()
        if self.batch.points is None and bool((left < 1.0 - NOT_SEMIDEFINITE).any()):
            raise ValueError("maximize: similarity must be positive semidefinite for log_det, got one that is not")
        self.squares = left.clamp(min=1.0)  # never below the identity

    def value(self, places: Tensor) -> Tensor:
        quality = at_places(self.batch.quality, places)
        inner = self.options.theta * self.batch.among(places) * quality[:, :, None] * quality[:, None, :]
        identity = torch.eye(inner.shape[1], dtype=inner.dtype, device=inner.device)
        found: Tensor = torch.linalg.slogdet(identity + inner).logabsdet
        return found


class MaxMin(Objective):
    """State: the squared distance, on the lattice, to the nearest pick. The first pick is the row farthest from the
    mean of all; gains are distances, and the value is the last of them."""

    is_submodular = False

    def __init__(self, batch: Batch, options: Options) -> None:
        super().__init__(batch, options)
        assert batch.points is not None
        self.points = batch.points
        self.norms = self.points.square().sum(dim=2)
        sizes = batch.is_row.sum(dim=1).double()
        mean = self.points.sum(dim=1)
        # |n p - sum|^2, in integers
        apart = sizes[:, None].square() * self.norms - 2 * sizes[:, None] * self._with(mean)
        self.squares, self.is_first = apart + mean.square().sum(dim=1, keepdim=True), True
        self.unit = lattice.radius(self.points.shape[2])

    def _with(self, point: Tensor) -> Tensor:
        return torch.matmul(self.points, point[..., None])[..., 0]

    def gains(self) -> Tensor:
        return lattice.square_root(self.squares.clamp(min=0)) / self.unit

    def take(self, j: Tensor, goes_on: Tensor) -> None:
        apart = self.norms + of_each(self.norms, j)[:, None] - 2 * self._with(of_each(self.points, j))
        nearer = apart if self.is_first else torch.minimum(self.squares, apart)
        self.squares, self.is_first = torch.where(goes_on[:, None], nearer, self.squares), False

    def bound_of_value(self, value: Tensor, k: Tensor) -> Tensor:
        moved = math.sqrt(self.points.shape[2] + 9.0) / self.unit  # two rows, by rounding them to the lattice
        return torch.where(k >= 2, 2 * value + moved, math.nan)


class Mmr(Objective):
    """State: the similarity to the most similar pick."""

    is_submodular = False

    def __init__(self, batch: Batch, options: Options) -> None:
        super().__init__(batch, options)
        self.nearest = torch.zeros_like(batch.quality)

    def gains(self) -> Tensor:
        return self.options.lam * self.batch.quality - (1 - self.options.lam) * self.nearest

    def take(self, j: Tensor, goes_on: Tensor) -> None:
        self.nearest = torch.maximum(self.nearest, self.batch.similar(j) * goes_on[:, None])


OBJECTIVES: dict[str, type[Objective]] = {
    "saturated_coverage": SaturatedCoverage,
    "graph_cut": GraphCut,
    "feature_based": FeatureBased,
    "log_det": LogDet,
    "max_min": MaxMin,
    "mmr": Mmr,
}
