"""group: rows brought together by the ids of their prompts, as claims."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mrtkern as mk

NAMES = ["b", "a", "b", "ü", "a", "b"]
NUMBERS = [7, -3, 7, 2**62, -3, 7]
ORDER, OFFSETS = [0, 2, 5, 1, 4, 3], [0, 3, 5, 6]

KINDS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "numpy": np.asarray,
    "objects": lambda ids: np.asarray(ids, dtype=object),
    "generator": lambda ids: (i for i in ids),
}


def key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


@pytest.mark.parametrize("ids", [NAMES, NUMBERS], ids=["texts", "numbers"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_grouped_in_order_of_appearance_whatever_holds_the_ids(kind: str, ids: list[Any]) -> None:
    order, offsets, keys = mk.group(KINDS[kind](ids))
    assert (order.tolist(), offsets.tolist()) == (ORDER, OFFSETS)
    assert keys.tolist() == [key(str(ids[row])) for row in (0, 1, 3)]
    assert order.dtype == offsets.dtype == keys.dtype == torch.int64


def test_columns_of_tables_are_sequences_of_ids() -> None:
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    expected = mk.group(NAMES)
    columns = (pa.array(NAMES), pa.chunked_array([NAMES[:2], NAMES[2:]]), pd.Series(NAMES, index=range(6, 0, -1)))
    for column in (*columns, pa.array(NAMES).dictionary_encode(), pd.Series(NAMES, dtype="category")):
        assert all(map(torch.equal, mk.group(column), expected))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_tensors_are_ids(dtype: torch.dtype) -> None:
    few = [7, 3, 7, 100, 3, 7]
    for ids in (torch.tensor(few, dtype=dtype), torch.tensor(few, dtype=dtype).numpy()):
        assert all(map(torch.equal, mk.group(ids), mk.group(few)))


def test_a_number_is_its_text_and_a_uuid_too() -> None:
    name = uuid.UUID(int=5)
    assert mk.group([7, "7", name, str(name), b"7"])[1].tolist() == [0, 3, 5]


def test_numbers_and_texts_of_numpy_are_those_of_python() -> None:
    given = [np.str_("b"), np.int8(7), np.uint64(2**64 - 1), np.bytes_(b"b"), np.longlong(7)]
    expected = mk.group(["b", 7, 2**64 - 1, b"b", 7])
    assert all(map(torch.equal, mk.group(given), expected))
    masked = np.ma.array([7, 8, 7], mask=False)
    assert all(map(torch.equal, mk.group(masked), mk.group([7, 8, 7])))


def test_what_pandas_has_for_nothing_is_missing() -> None:
    pd = pytest.importorskip("pandas")
    for column in (
        pd.Series(["a", pd.NA], dtype="string"),
        pd.Series([7, None], dtype="Int64"),
        ["a", pd.NaT],
        ["a", pd.NA],
    ):
        with pytest.raises(
            ValueError, match=r"^group: ids must hold an id in every row, got (<NA>|NaT|None) in row 1$"
        ):
            mk.group(column)
    assert mk.group(pd.Series([7, 7], dtype="Int64"))[1].tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"^group: ids must be a vector \[T\], got \[2, 1\]$"):
        mk.group(pd.DataFrame({"id": ["a", "b"]}))


def test_no_rows_are_no_prompts() -> None:
    assert [part.tolist() for part in mk.group([])] == [[], [0], []]


def test_bytes_that_are_no_text_are_ids() -> None:
    assert mk.group([b"\xff\x00", b"\xff"])[2].tolist() == [
        int.from_bytes(hashlib.blake2b(i, digest_size=8).digest(), "big", signed=True) for i in (b"\xff\x00", b"\xff")
    ]


@pytest.mark.parametrize(
    ("ids", "error", "sentence"),
    [
        (["a", None], ValueError, "hold an id in every row, got None in row 1"),
        (["a", ""], ValueError, "hold an id in every row, got '' in row 1"),
        (np.array([1.0, np.nan]), TypeError, "hold texts, whole numbers, bytes or UUIDs, got float in row 0"),
        ([float("nan")], ValueError, "hold an id in every row, got nan in row 0"),
        ([True], TypeError, "hold texts, whole numbers, bytes or UUIDs, got bool in row 0"),
        ("word", TypeError, "be a sequence of ids, got str"),
        (7, TypeError, "be a sequence of ids, got int"),
        ({"a": 1}, TypeError, "be a sequence of ids, got dict"),
        ({"a"}, TypeError, "be a sequence of ids, got set"),
        (np.str_("word"), TypeError, "be a sequence of ids, got str"),
        ([np.str_("")], ValueError, "hold an id in every row, got '' in row 0"),
        ([7, np.float64("nan")], ValueError, "hold an id in every row, got nan in row 1"),
        ([np.float32(2)], TypeError, "hold texts, whole numbers, bytes or UUIDs, got float in row 0"),
        ([np.bool_(True)], TypeError, "hold texts, whole numbers, bytes or UUIDs, got bool in row 0"),
        ([np.zeros(2)], TypeError, "hold texts, whole numbers, bytes or UUIDs, got ndarray in row 0"),
        ([np.datetime64("NaT")], ValueError, r"hold an id in every row, got .*NaT.* in row 0"),
        (
            [np.datetime64("2020", "ns")],
            TypeError,
            "hold texts, whole numbers, bytes or UUIDs, got datetime64 in row 0",
        ),
        (np.ma.array([7, 8], mask=[False, True]), ValueError, "hold an id in every row, got None in row 1"),
        ([np.ma.masked], ValueError, "hold an id in every row, got masked in row 0"),
        (["a", "\ud800"], ValueError, r"hold texts that UTF-8 can write, got '\\ud800' in row 1"),
        ([10**5000], ValueError, "hold numbers of at most 8192 bits, got one of 16610 in row 0"),
        (torch.ones(2), TypeError, "hold texts, whole numbers, bytes or UUIDs, got torch.float32"),
        (torch.ones(2, dtype=torch.bfloat16), TypeError, "hold texts, whole numbers, .*, got torch.bfloat16"),
        (torch.ones(2, dtype=torch.bool), TypeError, "hold texts, whole numbers, .*, got torch.bool"),
        (torch.ones(2, dtype=torch.int64).to_sparse(), ValueError, "be dense, got torch.sparse_coo"),
        (np.zeros((2, 2), dtype=int), ValueError, r"be a vector \[T\], got \[2, 2\]"),
        (torch.zeros(2, 2), ValueError, r"be a vector \[T\], got \[2, 2\]"),
    ],
)
def test_what_names_no_prompt_is_refused_by_its_row(ids: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^group: ids must {sentence}$"):
        mk.group(ids)


def test_grouped_rows_are_what_selection_and_losses_take() -> None:
    order, offsets, keys = mk.group(["x", "y"] * 8)
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    kept = mk.select_responses(x[order], offsets, 3, group_key=keys)
    alone = mk.select_responses(x[1::2], torch.tensor([0, 8]), 3, group_key=mk.group(["y"])[2])
    assert torch.equal(order[kept.ids[3:]], alone.ids * 2 + 1)
