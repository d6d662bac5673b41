"""Searching with the kernels: rows in the forms they read, the lists of rows, and rows whose lists are too short."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrtkern import lattice
from mrtkern._triton import rows as lattice_rows
from mrtkern.ops.neighbors.problem import Inputs, Problem

TILE = 256  # rows and columns of the largest tile of products: what is under way is a multiple of it
LARGEST_LIST = 1024  # neighbours in a list: its pairs are compared with each other
LONGEST_STRIP = 16  # one thread holds all of such a strip of a tile with 128 of them
REREAD = 8  # what the product of one listed pair costs, in strip maxima written and read
SCRATCH = 2**28  # bytes for the rows under way
MOST_ROWS = 2**15  # under way: the second axis of a grid is short
PAIR = 48  # bytes for a pair that is scored and sorted
TO_FLOAT32 = 3  # more than rounding moves a number of the size of a product
SUMS = {"exact": tl.float64, "int16": tl.int32, "float32": tl.float32}


@dataclass(frozen=True)
class Sizes:
    """Strips of columns, the lists of a row, and how many rows are under way at once."""

    STRIP: int  # columns of a strip
    num_strips: int  # of all columns
    strips: int  # places for strips of a row
    places: int  # places for columns of a row
    rows: int

    @classmethod
    def of(cls, problem: Problem) -> Sizes | None:
        """None where lists would hold nothing, or a good part of all columns: then every pair is scored."""
        N, k = problem.columns, problem.K
        if not 0 < k <= min(LARGEST_LIST, N // 4):
            return None
        STRIP = min(LONGEST_STRIP, 2 ** int(math.log2(max(1.0, math.sqrt(N / (REREAD * k))))))
        num_strips = triton.cdiv(N, TILE) * TILE // STRIP
        places = triton.cdiv(k + max(k, 192), 16) * 16
        strips = min(places, num_strips)
        each = 4 * (num_strips + strips * (1 + STRIP)) + 16 * (places + k)
        rows = max(TILE, min(SCRATCH // each, MOST_ROWS) // TILE * TILE)
        return cls(STRIP, num_strips, strips, places, min(rows, triton.cdiv(problem.M, TILE) * TILE))

    def turns(self, M: int) -> Iterator[slice]:
        """Rows 0 … M - 1 as they are under way together."""
        for first in range(0, M, self.rows):
            yield slice(first, min(first + self.rows, M))

    @property
    def bytes(self) -> int:
        """Of the lists of all rows under way, without their results."""
        return self.rows * (4 * (self.num_strips + self.strips * (1 + self.STRIP)) + 16 * self.places + 16)


def sorted_rows(problem: Problem) -> int:
    """Rows that are scored against all columns at once."""
    return max(1, min(SCRATCH // (PAIR * max(1, problem.columns)), MOST_ROWS, problem.M))


class Side(NamedTuple):
    """Rows of x, or of y."""

    scored: Tensor  # whose products decide: as given, or rounded as the precision says
    square: Tensor  # [M] float64: |x|**2 of the rows as given
    length: Tensor  # [M] float64: what rounded rows were divided by
    q: Tensor  # on the lattice
    error: Tensor  # [M] float64: how far rounding moved the rows of q

    @classmethod
    def of(cls, x: Tensor, square: Tensor, length: Tensor, precision: str) -> Side:
        if precision == "int16":
            scored = lattice_rows.on_fine_lattice(x, length)
        else:
            scored = lattice_rows.of_length_one(x, length) if precision == "float32" else x
        return cls(scored, square, length, *lattice_rows.on_lattice(x, length))


def sides(inputs: Inputs) -> tuple[Side, Side]:
    """x and y. For dot, rows of y share the largest length, and those of x without y too where products decide."""
    x = _features(inputs.x, inputs.precision)
    y = x if inputs.y is None else _features(inputs.y, inputs.precision)
    square_x = square_y = lattice_rows.squares(x)
    if y is not x:
        square_y = lattice_rows.squares(y)
    length_x, length_y = lattice.square_root(square_x), lattice.square_root(square_y)
    is_one = y is x
    if inputs.metric == "dot":
        length_y = length_y.max().expand(len(y)).contiguous()
        is_one = is_one and inputs.precision != "exact"
        length_x = length_y if is_one else length_x
    first = Side.of(x, square_x, length_x, inputs.precision)
    return first, first if is_one else Side.of(y, square_y, length_y, inputs.precision)


def _features(x: Tensor, precision: str) -> Tensor:
    """Rows as every precision takes them."""
    if x.dtype == torch.float64:
        return lattice.scaled(x) if precision == "exact" else lattice.to_float32(x)
    return x


def errors(x: Side, y: Side, D: int, precision: str) -> Tensor:
    """How far products of rows of x are from r**2 times their scores at most, float64 [M].

    By Cauchy-Schwarz a product of rows that were moved by a and b errs by at most r (a + b) + a b; scores that are
    themselves rounded, on the fine lattice or in float32 sums, err by what their own rounding does. One more is more
    than the float64 roundings of all of this.
    """
    r, largest = lattice.radius(D), y.error.max()
    own = {"exact": 0.0, "float32": D + 4.0, "int16": 0.0}[precision]
    if precision == "int16":
        fine = lattice.fine_radius(D)
        own = (fine * math.sqrt(D) + D / 4) * (r / fine) ** 2
    return r * (x.error + largest) + x.error * largest + own + 1


def margins(x: Side, y: Side, D: int, precision: str) -> Tensor:
    """How far below the k-th largest product a neighbour's can be, float32 [M]: what two products err at most."""
    return (2 * errors(x, y, D, precision) + TO_FLOAT32).float()


def limits(x: Side, D: int, threshold: float) -> Tensor:
    """The least product that a pair with cosine `threshold` can have, float32 [M]."""
    return (threshold * lattice.radius(D) ** 2 - errors(x, x, D, "exact") - TO_FLOAT32).float()
