"""Lists of neighbours, the sparse graph made from them, and lists that other libraries found."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check

OP = "Neighbors.from_lists"


@dataclass(frozen=True, eq=False, repr=False)
class Neighbors:
    """The nearest rows of every row.

    ids [M, k] int64: columns (rows of y, or of x), nearest first, equal scores by the lower id; -1 where there is none.
    scores [M, k] float32: larger is nearer; -inf where there is none.
    num_columns: how many rows could be neighbours, N.
    recall: of an approximate search, the share of the true neighbours that it found, measured on rows drawn at random:
        on average, and in recall_worst_tenth on average over the tenth of those rows that fared worst. None: exact.
    """

    ids: Tensor
    scores: Tensor
    num_columns: int
    recall: float | None = None
    recall_worst_tenth: float | None = None

    def __repr__(self) -> str:
        """A line: millions of numbers help nobody."""
        M, k = self.ids.shape
        found = ""
        if self.recall is not None:
            found = f", recall about {self.recall:.3f}, of the worst tenth {self.recall_worst_tenth:.3f}"
        return f"Neighbors({k} of {self.num_columns} for each of {M} rows{found})"

    def csr(self, diagonal: float | None = None, clamp: bool = False) -> Tensor:
        """The lists as a sparse matrix [M, N] float32: columns ascending, places without a neighbour left out.

        diagonal: the value of every row with itself, instead of what the lists have; only where M = N. clamp: negative
        scores become 0. Memory beyond the result: 60 bytes per entry.
        """
        ids, scores = self.ids, self.scores.clamp(min=0) if clamp else self.scores
        M, N = ids.shape[0], self.num_columns
        if diagonal is not None:
            _check.number("Neighbors.csr", "diagonal", diagonal)
            if M != N:
                _check.fail("Neighbors.csr", "diagonal", f"be None for a graph of {M} rows and {N} columns", diagonal)
            rows = torch.arange(M, dtype=torch.int64, device=ids.device)[:, None]
            ids = torch.cat([ids.masked_fill(ids == rows, -1), rows], dim=1)
            scores = torch.cat([scores, torch.full_like(rows, 1, dtype=torch.float32) * diagonal], dim=1)
        ids, order = ids.sort(dim=1)
        is_real = ids >= 0
        ends = torch.cat([ids.new_zeros(1), is_real.sum(dim=1).cumsum(0)])
        values = scores.gather(1, order)[is_real]
        with warnings.catch_warnings():  # once per process torch calls the layout a beta, or invariants unchecked
            for said in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly disabled"):
                warnings.filterwarnings("ignore", said, UserWarning)
            return torch.sparse_csr_tensor(ends, ids[is_real], values, (M, N), check_invariants=False)  # they hold

    @classmethod
    def from_lists(cls, ids: Any, scores: Any, *, num_columns: int | None = None) -> Neighbors:
        """Lists that FAISS, cuVS, usearch or hnswlib found, put into the order of `neighbors`.

        ids [M, k] of any integer type, in any order, where there is none -1 or, unsigned, the type's largest number;
        scores [M, k] of any floating type, larger is nearer: turn distances round first. Tensors, arrays or lists,
        views too. num_columns: N (None: M, a graph of rows with themselves).
        Raises ValueError for an id that is outside 0 … N - 1 or twice in a row, and for a score that is NaN.
        """
        scores, ids = _check.floating(OP, "scores", scores), _check.tensor(OP, "ids", ids)
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            _check.fail(OP, "ids", "be of an integer type", ids.dtype)
        if ids.ndim != 2 or ids.shape != scores.shape:
            shapes = f"{_check.shape(ids)} and {_check.shape(scores)}"
            _check.fail(OP, "ids and scores", "be matrices of the same shape [M, k]", shapes)
        _check.same_device(OP, ids=ids, scores=scores)
        N = ids.shape[0] if num_columns is None else _check.integer(OP, "num_columns", num_columns)
        is_signed = torch.iinfo(ids.dtype).min < 0
        ids = _as_int64(ids, N)
        _ids_values(ids, N, is_signed)
        scores = scores.float().masked_fill(ids < 0, -math.inf)
        if bool(scores.isnan().any()):
            _check.fail(OP, "scores", "be numbers", f"nan in row {int(scores.isnan().any(dim=1).int().argmax())}")
        places = torch.where(ids < 0, N, ids)  # behind everything else
        order = places.sort(dim=1, stable=True).indices
        order = order.gather(1, scores.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
        return cls(ids.gather(1, order), scores.gather(1, order), N)


def _as_int64(ids: Tensor, N: int) -> Tensor:
    """The ids as int64, with -1 for the largest number of an unsigned type where that is no column."""
    largest = torch.iinfo(ids.dtype).max
    wide = ids.to(torch.int64)  # of uint64, numbers from 2**63 on become negative
    if torch.iinfo(ids.dtype).min == 0 and N <= largest < 2**63:
        wide = wide.masked_fill(wide == largest, -1)
    return wide


def _ids_values(ids: Tensor, N: int, is_signed: bool) -> None:
    """Refuse ids that name no column, or one twice in a row."""
    is_outside = (ids < -1) | (ids >= N)
    if bool(is_outside.any()):
        row = int(is_outside.any(dim=1).int().argmax())
        found = int(ids[row][is_outside[row]][0])
        got = f"{found if is_signed else found % 2**64} in row {row}"
        _check.fail(OP, "ids", f"be from 0 to {N - 1}, or -1 (num_columns tells how many columns there are)", got)
    in_order = ids.sort(dim=1).values
    is_twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    if bool(is_twice.any()):
        row = int(is_twice.any(dim=1).int().argmax())
        got = f"{int(in_order[row, 1:][is_twice[row]][0])} twice in row {row}"
        _check.fail(OP, "ids", "name a column once in a row", got)
