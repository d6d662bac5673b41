"""Names of prompts: rows brought together by them, and the 64-bit number that stands for a name everywhere.

The command line, samplers and collators use these keys: random picks depend on them, so they never change.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrtkern import _check

OP = "group"
RULE = "hold texts, whole numbers, bytes or UUIDs"
MISSING = ("NoneType", "NAType", "NaTType", "MaskedConstant")  # by name: pandas need not be there
MOST_BITS = 8192  # of a whole number, whose text is hashed


def group_key(identity: bytes) -> int:
    """A prompt's id as a signed 64-bit number: BLAKE2b with an 8-byte digest of the id, big end first.

    The id is its text in UTF-8, also of a number or a UUID; an id of bytes is these bytes.
    """
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "big", signed=True)


def group(ids: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Bring the rows of each prompt together, prompts in order of first appearance, by ids of any kind.

        rows of prompt b:  order[offsets[b]:offsets[b + 1]]        its key:  keys[b]

    Arguments
    ---------
    ids : sequence [T]
        Texts, whole numbers, bytes or UUIDs: a list, a numpy array, an integer tensor, a column of pyarrow or pandas.
        A number is the same id as its text, 7 and "7".

    Returns
    -------
    order : int64 [T]
        Row numbers, those of a prompt in their order: embeddings[order] is packed.
    offsets : int64 [B + 1]
    keys : int64 [B]
        What `mrtkern select` gives as group_key to `select_responses`: the same for an id whatever the others are.

    All three are on the CPU. No gradient.

    Raises
    ------
    ValueError
        For ids that are no vector; for an id that is missing or empty, and a text that UTF-8 cannot write, naming the
        row.
    TypeError
        For an id that is neither text, a whole number, bytes nor a UUID, naming the row, and ids without an order.

    Memory
    ------
    About 40 bytes a row, and 200 a prompt and its id.

    Determinism
    -----------
    The same numbers everywhere: a key is BLAKE2b with an 8-byte digest of the id's text in UTF-8 (of bytes, of
    themselves), big end first, signed.

    Example
    -------
    >>> import mrtkern as mk
    >>> order, offsets, keys = mk.group(["b", "a", "b"])
    >>> order, offsets
    (tensor([0, 2, 1]), tensor([0, 2, 3]))

    Source
    ------
    BLAKE2: RFC 7693.
    """
    codes, identities = _codes(ids)
    counts = np.bincount(codes, minlength=len(identities))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    keys = np.asarray([group_key(identity) for identity in identities], dtype=np.int64)
    return torch.from_numpy(np.argsort(codes, kind="stable")), torch.from_numpy(offsets), torch.from_numpy(keys)


def _codes(ids: Any) -> tuple[Any, list[bytes]]:
    """[T] int64 numbers of prompts in order of appearance, and their identities."""
    if getattr(ids, "ndim", 1) != 1 and not isinstance(ids, np.generic):
        _check.fail(OP, "ids", "be a vector [T]", list(ids.shape))
    if isinstance(ids, Tensor):
        ids = _check.tensor(OP, "ids", ids)
        if ids.dtype not in _check.WHOLE:
            raise TypeError(f"{OP}: ids must {RULE}, got {ids.dtype}")
        ids = ids.detach().cpu().numpy()
    is_masked = isinstance(ids, np.ma.MaskedArray)  # whose tolist has None where it is
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" and not is_masked:
        values, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        by_row = np.argsort(first)
        number = np.empty_like(by_row)
        number[by_row] = np.arange(len(by_row))
        return number[inverse].astype(np.int64), [str(value).encode() for value in values[by_row].tolist()]
    known: dict[bytes, int] = {}
    codes = [known.setdefault(identity, len(known)) for identity in _identities(ids)]
    return np.asarray(codes, dtype=np.int64), list(known)


def _identities(ids: Any) -> Iterable[bytes]:
    """The bytes that are hashed, an id at a time."""
    for method in ("to_pylist", "tolist"):  # pyarrow, then numpy and pandas
        if hasattr(ids, method):
            ids = getattr(ids, method)()
            break
    if isinstance(ids, (str, bytes, Mapping, Set)) or not isinstance(ids, Iterable):
        raise TypeError(f"{OP}: ids must be a sequence of ids, got {type(ids).__name__}")
    for row, value in enumerate(ids):
        yield _identity(value, row)


def _identity(value: Any, row: int) -> bytes:
    """The bytes that are hashed."""
    if isinstance(value, (np.str_, np.bytes_, np.integer, np.floating, np.bool_)):
        value = value.item()
    if _is_missing(value) or (isinstance(value, (str, bytes)) and not value):
        _check.fail(OP, "ids", "hold an id in every row", f"{value!r} in row {row}")
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, uuid.UUID)):
        raise TypeError(f"{OP}: ids must {RULE}, got {type(value).__name__} in row {row}")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        rule = f"hold numbers of at most {MOST_BITS} bits"
        _check.fail(OP, "ids", rule, f"one of {value.bit_length()} in row {row}")
    try:
        return str(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{OP}: ids must hold texts that UTF-8 can write, got {value!r} in row {row}") from error


def _is_missing(value: Any) -> bool:
    """Whether it stands for nothing. What pandas has for nothing answers no question about itself."""
    if type(value).__name__ in MISSING:
        return True
    return isinstance(value, (float, np.datetime64, np.timedelta64)) and bool(value != value)
