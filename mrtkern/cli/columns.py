"""The columns that a selection needs, checked value by value: prompt ids, rewards, texts, vectors.

Each function takes one column of one batch and returns it packed, or refuses it with an InputError that names the
column, what it must hold, and the first place that does not.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mrtkern.cli import InputError, counted
from mrtkern.cli.reading import READ_ERRORS, numbers
from mrtkern.ids import group_key

VECTOR = re.compile(r"\s*(?:\[([^][()]*)\]|\(([^][()]*)\)|([^][()]*))\s*")  # [1, 2], (1, 2), or bare
LABEL_LETTERS = 40  # of a prompt id are kept for messages and pictures; its identity is the hash


def is_list(kind: Any) -> bool:
    """A list of any of pyarrow's plain list types."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: Any) -> bool:
    """Text, also as a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_number(kind: Any) -> bool:
    """Anything that casts to float64; truth values are 0 and 1."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


def is_vector(kind: Any) -> bool:
    """A list of numbers, also as texts, or text such as [0.1, 0.2]."""
    kind = storage(kind)
    return is_text(kind) or (is_list(kind) and any(a(kind.value_type) for a in (is_number, is_text, pa.types.is_null)))


def is_bytes(kind: Any) -> bool:
    """Bytes of any of pyarrow's plain types."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def storage(kind: Any) -> Any:
    """What an extension type, such as a tensor, is stored as; other types themselves."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


class Groups:
    """Prompt ids to codes 0 .. B-1 in order of appearance."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.codes: dict[bytes, int] = {}
        self.keys: list[int] = []
        self.labels: list[str] = []

    def encode(self, column: Any, first_row: int) -> Any:
        """[rows] int64 codes of a batch."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_null(column.type):
            raise InputError(f"column {self.name!r} must hold a prompt id, got null in row {first_row}")
        is_uuid = isinstance(column.type, pa.UuidType)
        column = column.storage if isinstance(column.type, pa.BaseExtensionType) else column
        missing = column.is_null(nan_is_null=True)
        try:
            texts = (column if is_bytes(column.type) else column.cast(pa.large_string())).cast(pa.large_binary())
        except READ_ERRORS as error:
            raise InputError(
                f"column {self.name!r} must hold prompt ids as text or numbers, got {column.type}"
            ) from error
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.binary_length(texts), 0), True))
        if pc.any(missing).as_py():
            row = missing.index(True).as_py()
            got = "an empty text" if column[row].as_py() in ("", b"") else "null"
            raise InputError(f"column {self.name!r} must hold a prompt id, got {got} in row {first_row + row}")
        encoded = texts.dictionary_encode()
        identities = encoded.dictionary.to_pylist()
        if is_uuid:
            identities = [str(uuid.UUID(bytes=identity)).encode() for identity in identities]
        codes = [self._code(identity) for identity in identities]
        return np.asarray(codes, dtype=np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]

    def _code(self, identity: bytes) -> int:
        digest = hashlib.blake2b(identity, digest_size=16).digest()
        code = self.codes.setdefault(digest, len(self.keys))
        if code == len(self.keys):
            self.keys.append(group_key(identity))
            self.labels.append(label(identity))
        return code


def label(identity: bytes) -> str:
    """The beginning of a prompt id; bytes that are no text as hexadecimal digits."""
    try:
        return identity.decode()[:LABEL_LETTERS]
    except UnicodeDecodeError:
        return identity.hex()[:LABEL_LETTERS]


@dataclass(frozen=True)
class Place:
    """Names the response at place i of a batch."""

    first_row: int
    splits: Any  # [rows+1] of the batch, or None

    def __call__(self, i: int) -> str:
        if self.splits is None:
            return f"row {self.first_row + i}"
        row = int(np.searchsorted(self.splits, i, side="right")) - 1
        return f"row {self.first_row + row}, response {i - int(self.splits[row])}"


def flat(column: Any, name: str, place: Place) -> tuple[Any, Any]:
    """(entries, lengths [rows]) of a list column without nulls."""
    column = column.storage if isinstance(column.type, pa.BaseExtensionType) else column
    if pa.types.is_null(column.type):
        raise InputError(f"column {name!r} must hold a list, got null in {place(0)}")
    if column.null_count:
        raise InputError(f"column {name!r} must hold a list, got null in {place(column.is_null().index(True).as_py())}")
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten(), np.full(len(column), column.type.list_size, dtype=np.int64)
    return column.flatten(), pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)


def no_nulls(column: Any, name: str, what: str, place: Callable[[int], str]) -> None:
    """Refuse a null, naming its place."""
    if column.null_count:
        raise InputError(f"column {name!r} must hold {what}, got null in {place(column.is_null().index(True).as_py())}")


def rewards(column: Any, name: str, place: Callable[[int], str]) -> Any:
    """[rows] float64, finite."""
    if is_text(column.type):
        try:
            column = numbers(column, pa.float64())
        except READ_ERRORS:
            return np.asarray([number(cell, name, place(i)) for i, cell in enumerate(column.to_pylist())])
    no_nulls(column, name, "a number", place)
    kind = pa.uint8() if pa.types.is_boolean(column.type) else column.type
    values = column.cast(kind).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if not np.isfinite(values).all():
        i = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"column {name!r} must hold finite numbers, got {values[i]} in {place(i)}")
    return values


def number(cell: str, name: str, where: str) -> float:
    """One cell of a CSV file."""
    try:
        return as_float(cell)
    except ValueError as error:
        raise InputError(f"column {name!r} must hold numbers, got {short(cell)} in {where}") from error


def as_float(cell: str) -> float:
    """Text as a number; 1_000 is none outside of programs."""
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def short(cell: str) -> str:
    """A cell as part of a sentence."""
    return repr(cell if len(cell) <= LABEL_LETTERS else cell[:LABEL_LETTERS] + "…")


def texts(column: Any, name: str, place: Place) -> Any:
    """The texts of a batch, none of them empty."""
    column = column.cast(pa.large_string())
    no_nulls(column, name, "text", place)
    empty = pc.equal(pc.utf8_trim_whitespace(column), "")
    if pc.any(empty).as_py():
        raise InputError(f"column {name!r} must hold text, got an empty one in {place(empty.index(True).as_py())}")
    return column


def parsed(cell: str) -> list[float]:
    """The numbers of [0.1, 0.2], (0.1 0.2) or 0.1 0.2; ValueError for a hole and for a number that is alone."""
    found = VECTOR.fullmatch(cell)
    if found is None:
        raise ValueError(cell)
    inside = next(part for part in found.groups() if part is not None)
    parts = inside.split(",") if "," in inside else inside.split()
    if found[3] is not None and len(parts) < 2:
        raise ValueError(cell)
    return [as_float(part) for part in parts]


def parsed_vectors(column: Any, name: str, place: Place) -> Any:
    """Text as lists of numbers."""
    no_nulls(column, name, "vectors", place)
    lists = []
    for i, cell in enumerate(column.cast(pa.large_string()).to_pylist()):
        try:
            lists.append(parsed(cell))
        except ValueError as error:
            raise InputError(f"column {name!r} must hold vectors, got {short(cell)} in {place(i)}") from error
    return pa.array(lists, type=pa.large_list(pa.float64()))


def vectors(column: Any, name: str, size: int | None, place: Place) -> Any:
    """[rows, D] float32, finite, none of them zero; `size` is D as the rows before have it."""
    if is_text(column.type):
        column = parsed_vectors(column, name, place)
    entries, lengths = flat(column, name, place)
    if len(lengths) == 0:
        return np.empty((0, size or 0), dtype=np.float32)
    size = int(lengths[0]) if size is None else size
    if (lengths != size).any():
        i = int(np.flatnonzero(lengths != size)[0])
        got = f"{counted(int(lengths[i]), 'number')} in {place(i)} after {size} before"
        raise InputError(f"column {name!r} must hold vectors of one length, got {got}")
    if size == 0:
        raise InputError(f"column {name!r} must hold vectors, got one without numbers in {place(0)}")
    if entries.null_count:
        raise InputError(
            f"column {name!r} must hold numbers, got null in {place(entries.is_null().index(True).as_py() // size)}"
        )
    if is_text(entries.type):
        entries = pa.array(rewards(entries, name, lambda i: place(i // size)))
    if pa.types.is_boolean(entries.type):
        entries = entries.cast(pa.uint8())
    block = entries.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False).reshape(-1, size)
    finite = np.isfinite(block)
    if not finite.all():
        i = int(np.flatnonzero(~finite.all(1))[0])
        culprit = entries[i * size + int(np.flatnonzero(~finite[i])[0])]
        raise InputError(f"column {name!r} must be finite in float32, got {culprit} in {place(i)}")
    if not block.any(1).all():
        i = int(np.flatnonzero(~block.any(1))[0])
        raise InputError(f"column {name!r} must hold vectors with a direction, got only zeros in {place(i)}")
    return block
