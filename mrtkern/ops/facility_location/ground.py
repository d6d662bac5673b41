"""What is covered, and who may be picked: one set of rows, groups of rows, a matrix or a graph of similarities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mrtkern import _check

METRICS = ("shifted_cosine", "clamped_cosine")


class Caller(NamedTuple):
    """In whose names a row is refused."""

    op: str = "facility_location"
    argument: str = "x"

    @property
    def subject(self) -> str:
        """As the sentence begins."""
        return f"{self.op}: {self.argument}"


OF_FEATURES, OF_MATRIX, OF_GRAPH = Caller(), Caller(argument="similarity"), Caller(argument="graph")


@dataclass(frozen=True, eq=False, kw_only=True)
class _Rows:
    """Rows of features. Each is a candidate, and only its direction counts."""

    x: Tensor  # [T, D] float32, bfloat16 or float16
    metric: str
    caller: Caller = OF_FEATURES
    first_row: int = 0  # what the caller calls row 0 of x: ids, owners and errors count from it
    scale: ClassVar[float] = 1.0  # largest similarity

    def refuse_not_finite(self, first: int = 0, last: int | None = None) -> None:
        """Raise where one of the rows first … last - 1 is not finite, naming it. Reads values."""
        _check.finite_rows(self.caller.subject, self.x[first:last], self.first_row + first)


@dataclass(frozen=True, eq=False, kw_only=True)
class Features(_Rows):
    """One set of rows, which cover themselves or others."""

    targets: Tensor | None = None  # [M, D] rows to cover instead of x

    @property
    def largest(self) -> int:
        """Candidates."""
        return self.x.shape[0]

    @cached_property
    def offsets(self) -> Tensor:
        """[0, N]: candidates of each problem."""
        return _one(self.x, self.largest)

    @property
    def covered(self) -> Tensor:
        """[0, M]: rows to cover of each problem."""
        return self.offsets if self.targets is None else _one(self.x, self.targets.shape[0])


@dataclass(frozen=True, eq=False, kw_only=True)
class Groups(_Rows):
    """Many sets of rows, each of which covers itself."""

    offsets: Tensor  # [B + 1] int64: group b owns rows offsets[b]:offsets[b + 1]
    largest: int  # no group has more rows

    @property
    def covered(self) -> Tensor:
        """Rows to cover of each problem: its candidates."""
        return self.offsets


@dataclass(frozen=True, eq=False, kw_only=True)
class Matrix:
    """Similarities, of whatever they are."""

    s: Tensor  # [M, N] finite and not negative: of each row to cover with each candidate
    scale: float  # the similarity that counts as 1
    caller: Caller = OF_MATRIX
    first_row: ClassVar[int] = 0

    @property
    def largest(self) -> int:
        """Candidates."""
        return self.s.shape[1]

    @cached_property
    def offsets(self) -> Tensor:
        """[0, N]: candidates of each problem."""
        return _one(self.s, self.largest)

    @property
    def covered(self) -> Tensor:
        """[0, M]: rows to cover of each problem."""
        return _one(self.s, self.s.shape[0])


@dataclass(frozen=True, eq=False, kw_only=True)
class Graph:
    """Similarities of some pairs; a pair that is missing is worth nothing."""

    ends: Tensor  # [M + 1] int64: the candidates of row i are ids[ends[i]:ends[i + 1]]
    ids: Tensor  # [edges] int64, no candidate twice in a row
    values: Tensor  # [edges] float32, finite and not negative
    size: int  # candidates
    has_self: bool  # every row covers itself by 1 unless it lists itself
    scale: float  # the similarity that counts as 1
    caller: Caller = OF_GRAPH
    first_row: ClassVar[int] = 0

    @property
    def largest(self) -> int:
        """Candidates."""
        return self.size

    @cached_property
    def offsets(self) -> Tensor:
        """[0, N]: candidates of each problem."""
        return _one(self.ids, self.size)

    @property
    def covered(self) -> Tensor:
        """[0, M]: rows to cover of each problem."""
        return _one(self.ids, len(self.ends) - 1)

    def dense(self) -> Matrix:
        """All pairs, the missing ones 0."""
        M = len(self.ends) - 1
        s = self.values.new_zeros((M, self.size))
        if self.has_self:
            s.fill_diagonal_(1.0)
        row = torch.repeat_interleave(self.ends.diff(), output_size=len(self.ids))
        s[row, self.ids] = self.values
        return Matrix(s=s, scale=self.scale, caller=self.caller)


Ground: TypeAlias = Features | Groups | Matrix | Graph


def _one(like: Tensor, size: int) -> Tensor:
    """Offsets of one problem."""
    return torch.tensor([0, size], dtype=torch.int64, device=like.device)
