"""Grounds of large problems as the compiled module knows them: what memory they take, their gains, their owners."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _check, _device, lattice
from mrtkern._device import address
from mrtkern.ops.facility_location import graphs
from mrtkern.ops.facility_location.ground import Features, Graph, Ground, Matrix
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.units import fixed_point

COLUMNS_AT_ONCE = 1 << 19  # entries of a matrix whose owners are looked for at a time


class Oracle(Protocol):
    """A ground, ready for the greedy loop."""

    handle: Any  # _C.Oracle

    def owners(self, ids: Tensor) -> Tensor:
        """Position of the most similar of `ids` (ascending) for each row, -1 where none is similar at all, [M]."""


def of(ground: Ground, rule: Rule, maximum: float, room: int) -> Oracle:
    """The ground's; `room`: bytes it may take. Weights are contiguous and outlive it."""
    weights = _C.PairWeights(weight=address(rule.weight), quality=address(rule.quality), maximum=maximum)
    if isinstance(ground, Matrix):
        return _Matrix(ground, rule, weights)
    if isinstance(ground, Graph):
        return _Graph(ground, weights)
    assert isinstance(ground, Features)
    return _Features(ground, weights, room)


class _Features:
    """Rows of features: a table of all pairs where it fits, else products when they are asked for, and lists later."""

    def __init__(self, ground: Features, weights: Any, room: int) -> None:
        x, y = ground.x, ground.targets
        self.M = len(x if y is None else y)
        left = room - packed_bytes(len(x), self.M, x.shape[1], y is None)
        has_table = _C.TableOracle.bytes(len(x), self.M) <= left
        problem = _C.LargeProblem(
            candidates=_device.features(_C, x),
            covered=None if y is None else _device.features(_C, y),
            N=len(x),
            M=self.M,
            metric=ground.metric,
            radius=lattice.radius(x.shape[1]),
            weights=weights,
            is_ordered=not has_table,
            list_bytes=max(left, 0),
            threads=torch.get_num_threads(),
        )
        self.rows = _C.FeaturesOracle(problem)
        bad_x, bad_y = self.rows.bad_rows
        if bad_x >= 0:
            ground.refuse_not_finite(bad_x, bad_x + 1)
        if bad_y >= 0 and y is not None:
            _check.finite_rows(f"{ground.caller.op}: targets", y[bad_y : bad_y + 1], bad_y)
        self.handle = self.rows.table() if has_table else self.rows

    def owners(self, ids: Tensor) -> Tensor:
        owner = torch.empty(self.M, dtype=torch.int32, device="cpu")
        narrow = ids.int()
        self.rows.owners(ids=narrow.data_ptr(), count=len(ids), owner=owner.data_ptr())
        return owner.long()


class _Matrix:
    """A table of the matrix in fixed point."""

    def __init__(self, ground: Matrix, rule: Rule, weights: Any) -> None:
        self.ground, s = ground, ground.s
        self.is_weighed = rule.weight is not None or rule.quality is not None
        self.handle = _C.TableOracle(
            data=s.data_ptr(),
            dtype=_device.DTYPES[s.dtype],
            shape=(s.shape[0], s.shape[1]),
            strides=(s.stride(0), s.stride(1)),
            scale=ground.scale,
            weights=weights,
            threads=torch.get_num_threads(),
        )

    def owners(self, ids: Tensor) -> Tensor:
        s = self.ground.s
        if not len(ids) or not len(s):
            return ids.new_full((len(s),), -1)
        if not self.is_weighed:  # then the table is of the similarities themselves
            owner, narrow = torch.empty(len(s), dtype=torch.int32, device="cpu"), ids.int()
            self.handle.owners(ids=narrow.data_ptr(), count=len(ids), covered=len(s), owner=owner.data_ptr())
            return owner.long()
        ones, found = torch.ones(max(len(s), len(ids)), dtype=torch.float32, device="cpu"), []
        for rows in s.split(max(COLUMNS_AT_ONCE // len(ids), 1)):
            chosen = rows.index_select(1, ids).double()  # rows[:, ids] of uint16 is not in torch 2.6
            plain = fixed_point(chosen / self.ground.scale, 1.0, ones[: len(rows)], ones[: len(ids)], 1.0)
            best, position = plain.max(dim=1)  # the first of equal similarities
            found.append(torch.where(best > 0, position, -1))
        return torch.cat(found)


class _Graph:
    """Lists of the graph turned round."""

    def __init__(self, ground: Graph, weights: Any) -> None:
        self.ground = ground
        self.handle = _C.GraphOracle(
            offsets=ground.ends.data_ptr(),
            ids=ground.ids.data_ptr(),
            values=ground.values.data_ptr(),
            shape=(len(ground.ends) - 1, ground.size),
            scale=ground.scale,
            has_self=ground.has_self,
            weights=weights,
            threads=torch.get_num_threads(),
        )

    def owners(self, ids: Tensor) -> Tensor:
        position = ids.new_full((self.ground.size,), -1)
        position[ids] = torch.arange(len(ids), dtype=torch.int64, device="cpu")
        found = [self._owners_of(ids, position, *part) for part in graphs.parts(self.ground.ends)]
        return torch.cat([ids.new_empty(0), *found])

    def _owners_of(self, ids: Tensor, position: Tensor, first: int, behind: int, edges: slice) -> Tensor:
        graph = self.ground
        at = position[graph.ids[edges]]
        sizes = graph.ends[first : behind + 1].diff()
        row = torch.repeat_interleave(sizes, output_size=len(at))
        is_kept = at >= 0
        row, at, value = row[is_kept], at[is_kept], graph.values[edges][is_kept]
        if graph.has_self:  # kept rows that do not list themselves
            mine = ids[(ids >= first) & (ids < behind)]
            alone = mine[~torch.isin(mine, ids[at[row + first == ids[at]]])]
            row, at = torch.cat([row, alone - first]), torch.cat([at, position[alone]])
            value = torch.cat([value, value.new_ones(len(alone))])
        one = torch.ones(1, dtype=torch.float32, device="cpu")
        steps = fixed_point((value.double() / graph.scale)[None], 1.0, one, torch.ones_like(value), 1.0)[0]
        key = steps * (len(ids) + 1) - at  # the largest: the most similar, of equals the lowest position
        best = ids.new_zeros(behind - first).scatter_reduce(0, row, torch.where(steps > 0, key, 0), "amax")
        found = -best % (len(ids) + 1)
        return torch.where(best > 0, found, -1)


def packed_bytes(N: int, M: int, D: int, is_self: bool) -> int:
    """Bytes of rows on the lattice, of bitmaps of dead tiles and of what a batch of candidates needs."""
    rows, width = N + 16 + (0 if is_self else M + 16), 2 * (D + 2)
    return rows * width + (N + 1024) * (M + 1024) // 2048 + 160 * (M + 64) + (320 << 20)
