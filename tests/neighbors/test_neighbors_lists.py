"""Neighbors: the sparse matrix made of lists, and lists that other libraries found."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from mrtkern.ops.neighbors.lists import Neighbors
from mrtkern.ops.neighbors.op import neighbors
from tests.tools import lists


def dense(nb: Neighbors, diagonal: float | None = None, clamp: bool = False) -> torch.Tensor:
    """The matrix of lists entry by entry, NaN where there is none."""
    found = torch.full((len(nb.ids), nb.num_columns), torch.nan)
    for m, (ids, scores) in enumerate(zip(nb.ids.tolist(), nb.scores.tolist(), strict=True)):
        for n, score in zip(ids, scores, strict=True):
            if n >= 0:
                found[m, n] = max(score, 0.0) if clamp else score
        if diagonal is not None:
            found[m, m] = diagonal
    return found


def entries(graph: torch.Tensor) -> torch.Tensor:
    """The matrix of a sparse graph, NaN where it has no entry; its columns must ascend."""
    found = torch.full(graph.shape, torch.nan)
    ends = graph.crow_indices().tolist()
    for m in range(graph.shape[0]):
        columns = graph.col_indices()[ends[m] : ends[m + 1]]
        assert bool((columns.diff() > 0).all())
        found[m, columns] = graph.values()[ends[m] : ends[m + 1]]
    return found


@pytest.mark.parametrize("diagonal", [None, 1.0, 0.25])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("k", [0, 1, 5, 30])  # 30: more than there are, so rows end with pads
def test_csr_has_the_entries_of_the_lists(k: int, exclude_self: bool, clamp: bool, diagonal: float | None) -> None:
    nb = neighbors(lists.normal(23, 4), k, exclude_self=exclude_self)
    graph = nb.csr(diagonal=diagonal, clamp=clamp)
    assert graph.layout == torch.sparse_csr and graph.shape == (23, 23) and graph.dtype == torch.float32
    torch.sparse_csr_tensor(
        graph.crow_indices(), graph.col_indices(), graph.values(), graph.shape, check_invariants=True
    )
    assert torch.equal(entries(graph).nan_to_num(nan=9.0), dense(nb, diagonal, clamp).nan_to_num(nan=9.0))


def test_csr_of_two_matrices_is_rectangular_and_has_no_diagonal() -> None:
    nb = neighbors(lists.normal(6, 4), 3, y=lists.normal(11, 4, 1))
    assert torch.equal(entries(nb.csr()).nan_to_num(nan=9.0), dense(nb).nan_to_num(nan=9.0))
    with pytest.raises(ValueError, match=r"diagonal must be None for a graph of 6 rows and 11 columns, got 1\.0"):
        nb.csr(diagonal=1.0)


def test_csr_is_silent_and_leaves_warnings_as_they_were() -> None:
    """In a process of its own: torch warns of the layout once."""
    program = (
        "import warnings, torch, mrtkern; warnings.simplefilter('error'); before = list(warnings.filters); "
        "mrtkern.neighbors(torch.eye(4), 2, backend='reference').csr(); assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_csr_of_empty_lists() -> None:
    assert neighbors(torch.ones(0, 3), 2).csr().shape == (0, 0)
    assert neighbors(torch.ones(3, 3), 2, y=torch.ones(0, 3)).csr()._nnz() == 0


@pytest.mark.parametrize("ids_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("scores_type", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_shuffled_lists_come_back_in_order(ids_type: torch.dtype, scores_type: torch.dtype, as_numpy: bool) -> None:
    nb = neighbors(lists.copies(), 40)  # many equal scores
    rounded = nb.scores.to(scores_type)
    order = torch.rand(nb.ids.shape, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    given: tuple[Any, Any] = (nb.ids.gather(1, order).to(ids_type), rounded.gather(1, order))
    if as_numpy:
        given = tuple(value.numpy() for value in given)
    got = Neighbors.from_lists(*given)
    assert got.num_columns == 500
    assert torch.equal(got.scores, rounded.float())
    same = rounded.float()[:, 1:] == rounded.float()[:, :-1]
    assert bool((got.ids[:, 1:] > got.ids[:, :-1])[same].all())
    if scores_type != torch.float16:
        assert torch.equal(got.ids, nb.ids)


def test_pads_of_others_become_ours() -> None:
    ids = np.array([[-1, 2, -1, 0], [1, -1, 0, 3]], dtype=np.int64)
    scores = np.array([[-3.4e38, 0.5, 0.9, 0.5], [0.1, np.nan, 0.2, -7.0]], dtype=np.float32)
    got = Neighbors.from_lists(ids, scores, num_columns=4)
    assert got.ids.tolist() == [[0, 2, -1, -1], [0, 1, 3, -1]]
    assert got.scores[0].tolist() == [0.5, 0.5, -torch.inf, -torch.inf]
    assert got.csr().shape == (2, 4)


UNSIGNED = ("uint8", "uint16", "uint32", "uint64")  # cuVS: uint32, usearch and hnswlib: uint64


@pytest.mark.parametrize("as_numpy", [False, True])
@pytest.mark.parametrize("kind", [*UNSIGNED, "int8", "int16", "int32", "int64", ">i8", ">u4"])
def test_ids_may_have_any_integer_type(kind: str, as_numpy: bool) -> None:
    none = np.iinfo(kind).max if "u" in kind else -1
    ids = np.array([[1, 0, none], [2, 1, 0]], dtype=kind)
    scores = np.array([[0.5, 0.25, 0.75], [0.5, 0.25, 0.75]], dtype=np.float32)
    if as_numpy:
        got = Neighbors.from_lists(ids, scores, num_columns=3)
    elif kind[0] == ">":
        pytest.skip("torch has no other byte order")
    else:
        got = Neighbors.from_lists(torch.from_numpy(ids), torch.from_numpy(scores), num_columns=3)
    assert got.ids.tolist() == [[1, 0, -1], [0, 2, 1]]
    assert got.scores.tolist() == [[0.5, 0.25, -torch.inf], [0.75, 0.5, 0.25]]


@pytest.mark.filterwarnings("error")
def test_views_of_arrays_are_read_as_they_look() -> None:
    ids = np.array([[0, 9, 1, 9], [2, 9, 0, 9]], dtype=np.uint32)
    scores = np.array([[0.1, 9.0, 0.2, 9.0], [0.3, 9.0, 0.4, 9.0]], dtype=">f8")
    for array in (ids, scores):
        array.flags.writeable = False
    got = Neighbors.from_lists(ids[::-1, -2::-2], scores[::-1, -2::-2], num_columns=3)
    assert got.ids.tolist() == [[0, 2], [1, 0]]
    assert torch.equal(got.scores, torch.tensor([[0.4, 0.3], [0.2, 0.1]]))


def test_the_largest_number_of_a_type_may_be_a_column() -> None:
    ids, scores = np.array([[255]], dtype=np.uint8), np.ones((1, 1))
    assert Neighbors.from_lists(ids, scores, num_columns=256).ids.tolist() == [[255]]
    assert Neighbors.from_lists(ids, scores, num_columns=255).ids.tolist() == [[-1]]
    with pytest.raises(ValueError, match=f"got {2**64 - 2} in row 0$"):
        Neighbors.from_lists(np.array([[2**64 - 2]], dtype=np.uint64), scores, num_columns=5)


@pytest.mark.parametrize("kind", [bool, object, np.float64, np.complex64])
def test_arrays_of_other_types_are_no_ids(kind: Any) -> None:
    rule = r"must be (of an integer type|float32, .*|a tensor, an array or a list of numbers), got [\w. ]+$"
    with pytest.raises((ValueError, TypeError), match=f"^Neighbors.from_lists: ids {rule}"):
        Neighbors.from_lists(np.ones((1, 1), dtype=kind), np.ones((1, 1)), num_columns=2)
    if np.dtype(kind) != np.float64:
        with pytest.raises((ValueError, TypeError), match=f"^Neighbors.from_lists: scores {rule}"):
            Neighbors.from_lists(np.ones((1, 1), dtype=int), np.ones((1, 1), dtype=kind), num_columns=2)


def test_a_found_graph_equals_ours() -> None:
    faiss = pytest.importorskip("faiss", reason="the bench extra is not installed")
    x = torch.nn.functional.normalize(lists.normal(200, 16), dim=1)
    scores, ids = faiss.knn(x.numpy(), x.numpy(), 6, metric=faiss.METRIC_INNER_PRODUCT)
    got = Neighbors.from_lists(ids, scores)
    assert torch.equal(got.ids, neighbors(x, 6, exclude_self=False).ids)


@pytest.mark.parametrize(
    ("ids", "scores", "num_columns", "sentence"),
    [
        ([[0, 1], [2, 2]], None, 3, "ids must name a column once in a row, got 2 twice in row 1"),
        ([[0, 1], [2, 3]], None, 3, r"ids must be from 0 to 2, or -1 \(.*\), got 3 in row 1"),
        ([[0, -2], [1, 0]], None, 3, r"ids must be from 0 to 2, or -1 \(.*\), got -2 in row 0"),
        ([[0, 1], [1, 2]], None, None, r"ids must be from 0 to 1, or -1 \(num_columns tells .*\), got 2 in row 1"),
        ([[0, 1], [1, 0]], [[0.0, 1.0], [torch.nan, 0.0]], None, "scores must be numbers, got nan in row 1"),
        (
            [[0, 1]],
            [[0.0]],
            None,
            r"ids and scores must be matrices of the same shape \[M, k\], got \[1, 2\] and \[1, 1\]",
        ),
        ([0, 1], [0.0, 1.0], None, r"ids and scores must be matrices of the same shape \[M, k\], got \[2\] and \[2\]"),
        ([[0.0]], [[0.0]], None, "ids must be of an integer type, got torch.float32"),
        ([[0]], [[1]], None, "scores must be float32, .*, got torch.int64"),
    ],
)
def test_bad_lists_are_named(ids: Any, scores: Any, num_columns: int | None, sentence: str) -> None:
    given = torch.tensor(ids)
    values = torch.zeros(given.shape) if scores is None else torch.tensor(scores)
    with pytest.raises(ValueError, match=f"^Neighbors.from_lists: {sentence}$"):
        Neighbors.from_lists(given, values, num_columns=num_columns)


def test_lists_must_hold_numbers() -> None:
    assert Neighbors.from_lists([[0]], [[0.5]]).ids.tolist() == [[0]]
    with pytest.raises(TypeError, match=r"^Neighbors.from_lists: ids must be a tensor, .*, got str$"):
        Neighbors.from_lists("0", [[0.5]])


def test_a_line_describes_a_graph() -> None:
    assert repr(neighbors(torch.ones(3, 2), 2, y=torch.ones(7, 2))) == "Neighbors(2 of 7 for each of 3 rows)"
