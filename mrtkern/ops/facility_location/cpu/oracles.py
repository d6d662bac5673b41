"""Grounds of large problems as the compiled module knows them: what memory they take, their gains, their owners."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _check, _device, lattice
from mrtkern._device import address
from mrtkern.ops.facility_location import large, owners
from mrtkern.ops.facility_location.ground import Features, Graph, Ground, Matrix
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule

LOOP_BYTES = 64  # of the loop, a candidate
EDGE_BYTES = 24  # of a graph: lists by candidate with their heads and, where some are missing, a copy without them
GRAPH_BYTES = 32 << 20  # beside them: what checks and owners make of some edges at a time
MATRIX_BYTES = 40 << 20  # beside the table: owners, where it is not of the similarities themselves


def memory(problem: Problem) -> int:
    """The least bytes beyond inputs and results with which it runs."""
    N, M = problem.largest or 0, problem.M
    loop = LOOP_BYTES * N
    if problem.form is Matrix:
        return loop + int(_C.TableOracle.bytes(N, M)) + MATRIX_BYTES
    if problem.form is Graph:
        return loop + EDGE_BYTES * problem.edges + 48 * (N + M) + GRAPH_BYTES
    return loop + packed_bytes(N, M, problem.D, problem.covered is None)


def of(ground: Ground, rule: Rule, maximum: float, room: int) -> large.Oracle:
    """The ground's; `room`: bytes it may take. Weights are contiguous and outlive it."""
    weights = _C.PairWeights(weight=address(rule.weight), quality=address(rule.quality), maximum=maximum)
    if isinstance(ground, Matrix):
        return _Matrix(ground, rule, weights)
    if isinstance(ground, Graph):
        return _Graph(ground, weights)
    assert isinstance(ground, Features)
    return _Features(ground, weights, room - LOOP_BYTES * ground.largest)


class _Covering:
    """What all of them cover by the same words."""

    handle: Any

    def cover(self, ids: Tensor, rows: Tensor) -> int:
        ids, rows = ids.int(), rows.int()
        return int(self.handle.cover(ids=ids.data_ptr(), count=len(ids), rows=rows.data_ptr(), num_rows=len(rows)))


class _Features(_Covering):
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


class _Matrix(_Covering):
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
        return owners.of_matrix(self.ground, ids)


class _Graph(_Covering):
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
        return owners.of_graph(self.ground, ids)


def packed_bytes(N: int, M: int, D: int, is_self: bool) -> int:
    """Bytes of rows on the lattice, of bitmaps of dead tiles and of what a batch of candidates needs."""
    rows, width = N + 16 + (0 if is_self else M + 16), 2 * (D + 2)
    return rows * width + (N + 1024) * (M + 1024) // 2048 + 160 * (M + 64) + (320 << 20)


ENGINE = large.Engine(memory, of)
