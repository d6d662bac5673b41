"""Pass 1: the needed columns of the whole table, checked and packed, prompt by prompt.

Two layouts. Long: a row is a response. Nested: a row is a prompt and the named columns hold lists, an entry a response.
Either way the responses are numbered 0 .. T-1 in file order, and `Packed.order` brings those of one prompt together,
stably, wherever its rows stand in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mrtkern.cli import InputError, counted
from mrtkern.cli import columns as check
from mrtkern.cli.columns import Place, is_list, is_number, is_text, is_vector
from mrtkern.cli.reading import EXACT, Csv, Source

TURNS = ({"role", "content"}, {"from", "value"})  # fields of a turn of a conversation, as chat templates read it


@dataclass(frozen=True)
class Wanted:
    """Names of the columns to read."""

    group: str | None  # None: all rows are one prompt
    embedding: str | None
    text: str | None
    reward: str | None
    cut: tuple[str, ...] = ()  # nested: list columns that have an entry per response
    whole: tuple[str, ...] = ()  # nested: list columns that have not, whatever their lengths

    def names(self) -> list[str]:
        """Each column once."""
        named = (self.group, self.embedding, self.text, self.reward)
        return list(dict.fromkeys(name for name in named if name is not None))


@dataclass
class Packed:
    """What pass 1 leaves in memory. T responses, B prompts in order of appearance."""

    num_rows: int  # of the input table
    order: Any  # [T] int64: response number at packed place t; None when the file is already packed
    offsets: Any  # [B+1] int64 into the packed places
    group_key: Any  # [B] int64
    labels: list[str]  # [B] beginnings of the prompt ids
    reward: Any  # [T] float64, packed, or None
    vectors: Any  # [T, D] float32, packed, or None
    texts: Any  # [T] pyarrow.ChunkedArray, packed, or None
    splits: Any = None  # nested: [num_rows+1] int64, responses of row r are splits[r]:splits[r+1] in file order
    cut: list[str] = field(default_factory=list)  # nested: list columns with one entry per response on every row
    uncut: dict[str, str] = field(
        default_factory=dict
    )  # nested: the other list columns, and the first row that differs


class Rows:
    """A float array that grows at its end, in place where the allocator can."""

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity or 1 << 12
        self.count = 0
        self.data: Any = None

    def append(self, block: Any) -> None:
        """Add the rows of `block`."""
        if self.data is None:
            self.data = np.empty((max(self.capacity, len(block)), *block.shape[1:]), dtype=block.dtype)
        if self.count + len(block) > len(self.data):
            larger = max(self.count + len(block), len(self.data) * 3 // 2)
            self.data.resize((larger, *self.data.shape[1:]), refcheck=False)
        self.data[self.count : self.count + len(block)] = block
        self.count += len(block)

    def taken(self, order: Any) -> Any:
        """The rows, in packed order."""
        return self.data[: self.count] if order is None else self.data[: self.count][order]


def is_nested(source: Source, wanted: Wanted) -> bool:
    """Whether the named columns hold a list of responses a row (nested) or one response (long); they must agree."""
    check_columns(source, [*wanted.names(), *wanted.cut, *wanted.whole])
    check_group(source, wanted.group)
    depths: dict[tuple[str, str], bool] = {}
    leaves = ((wanted.embedding, is_vector), (wanted.text, is_text), (wanted.reward, is_number))
    for column, is_leaf in leaves:
        kind = source.schema.field(column).type if column is not None else pa.null()
        if column is None or pa.types.is_null(kind):  # nothing but nulls: refused with its row when it is read
            continue
        is_one = is_leaf(kind) or (isinstance(source, Csv) and column == wanted.reward)
        is_many = is_list(kind) and (is_leaf(kind.value_type) or pa.types.is_null(kind.value_type))
        expected = {is_vector: "vectors", is_text: "texts", is_number: "numbers"}[is_leaf]
        if not is_one and not is_many:
            raise InputError(f"column {column!r} must hold {expected}, got {kind} in every row from row 0")
        if is_one and is_many and is_leaf is is_vector and is_text(kind.value_type):
            is_one = holds_numbers(source, column)  # ["0.1", "0.2"] is a vector, ["[0.1, 0.2]", "[0.3, 0.4]"] are two
        depths[column, expected] = not is_one
    if len(set(depths.values())) > 1:
        kinds = " and ".join(f"{name!r} ({source.schema.field(name).type})" for name, _ in depths)
        raise InputError(f"columns must all hold one response a row or all hold a list of responses a row, got {kinds}")
    nested = any(depths.values())
    check_lists(source, wanted, nested)
    return nested


def check_columns(source: Source, names: list[str]) -> None:
    """Refuse a name that no column has."""
    for name in names:
        if name not in source.schema.names:
            have = ", ".join(source.schema.names) or "none"
            raise InputError(f"{source.path} has no column {name!r}: its columns are {have}")


def check_group(source: Source, name: str | None) -> None:
    """Refuse prompt ids that are lists, or numbers that reading has made equal."""
    if name is None:
        return
    kind = source.schema.field(name).type
    if is_list(kind):
        raise InputError(f"column {name!r} must hold one prompt id a row, got {kind}")
    if name in source.rounded and pa.types.is_floating(kind):
        for first_row, batch in source.batches([name]):
            is_large = np.abs(combined(batch, name).to_numpy(zero_copy_only=False)) >= EXACT
            if is_large.any():
                got = f"one from 2**53 in row {first_row + int(is_large.argmax())} beside others with fractions"
                raise InputError(f"column {name!r} must hold prompt ids that are text or whole numbers, got {got}")


def holds_numbers(source: Source, name: str) -> bool:
    """Whether the first entry of a column of lists of texts is a number."""
    for _, batch in source.batches([name]):
        entries = combined(batch, name).flatten().drop_null()
        if len(entries):
            try:
                return check.as_float(entries[0].as_py()) is not None
            except ValueError:
                return False
    return False


def check_lists(source: Source, wanted: Wanted, nested: bool) -> None:
    """Refuse what --cut and --whole cannot mean."""
    for flag, names in (("--cut", wanted.cut), ("--whole", wanted.whole)):
        for name in names:
            kind = source.schema.field(name).type
            if not nested or not is_list(kind):
                table = "a nested table" if nested else "a table with a response a row"
                raise InputError(f"{flag} must name a list column of a nested table, got {name!r} ({kind}) of {table}")
    for name in wanted.whole:
        if name in (*wanted.names(), *wanted.cut):
            raise InputError(f"--whole must not name a column that is cut, got {name!r}")


def is_conversation(kind: Any) -> bool:
    """A list of turns: two turns beside two responses are no responses."""
    entry = kind.value_type
    return pa.types.is_struct(entry) and any(turn <= {field.name for field in entry} for turn in TURNS)


def list_columns(source: Source, wanted: Wanted) -> tuple[list[str], dict[str, str]]:
    """Nested: the list columns that may have an entry per response, and why the others have not."""
    cut, uncut = [], {}
    for item in source.schema:
        if is_list(item.type):
            if item.name in wanted.whole:
                uncut[item.name] = "--whole"
            elif is_conversation(item.type) and item.name not in wanted.cut:
                uncut[item.name] = "a conversation"
            else:
                cut.append(item.name)
    return cut, uncut


@dataclass
class Pass:
    """What has been read so far."""

    groups: check.Groups
    codes: Rows
    reward: Rows
    vectors: Rows
    texts: list[Any] = field(default_factory=list)
    lengths: list[Any] = field(default_factory=list)  # nested: responses of each row
    num_responses: int = 0

    def add(self, batch: Any, first_row: int, wanted: Wanted, is_nested: bool) -> None:
        """Check and pack one batch."""
        codes = np.zeros(batch.num_rows, dtype=np.int64)
        if wanted.group is not None:
            codes = self.groups.encode(combined(batch, wanted.group), first_row)
        splits = None
        found: dict[str, Any] = {}
        for name in wanted.names():
            found[name] = combined(batch, name)
        if is_nested:
            values = [name for name in wanted.names() if name != wanted.group]
            splits, found = unnested(found, values, first_row)
            codes = np.repeat(codes, np.diff(splits))
            self.lengths.append(np.diff(splits))
        place = Place(first_row, splits)
        self.codes.append(codes)
        if wanted.reward is not None:
            self.reward.append(check.rewards(found[wanted.reward], wanted.reward, place))
        if wanted.text is not None:
            self.texts.append(check.texts(found[wanted.text], wanted.text, place))
        if wanted.embedding is not None and len(codes):
            size = None if self.vectors.data is None else self.vectors.data.shape[1]
            self.vectors.append(check.vectors(found[wanted.embedding], wanted.embedding, size, place))
        self.num_responses += len(codes)


def combined(batch: Any, name: str) -> Any:
    """One column of a batch as one array."""
    column = batch.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def unnested(found: dict[str, Any], values: list[str], first_row: int) -> tuple[Any, dict[str, Any]]:
    """([rows+1] splits, columns with one entry per response); the lists of a row must be equally long."""
    splits = None
    entries = dict(found)
    for name in values:
        entries[name], lengths = check.flat(found[name], name, Place(first_row, None))
        ours = np.concatenate([[0], np.cumsum(lengths)])
        if splits is not None and (np.diff(splits) != lengths).any():
            row = int(np.flatnonzero(np.diff(splits) != lengths)[0])
            got = f"{np.diff(splits)[row]} and {lengths[row]} in row {first_row + row}"
            raise InputError(f"columns {values[0]!r} and {name!r} must hold lists of one length, got {got}")
        splits = ours
    return splits, entries


def unparallel(batch: Any, candidates: list[str], lengths: Any, first_row: int) -> dict[str, str]:
    """The list columns without one entry per response on every row of the batch: what the first such row holds."""
    found = {}
    for name in candidates:
        column = combined(batch, name)
        entries = np.full(len(column), -1)
        is_filled = column.is_valid().to_numpy(zero_copy_only=False)
        entries[is_filled] = check.flat(column.drop_null(), name, Place(0, None))[1]
        if (entries != lengths).any():
            row = int(np.flatnonzero(entries != lengths)[0])
            held = "null" if entries[row] < 0 else f"{entries[row]:,}"
            found[name] = f"{held} for {counted(int(lengths[row]), 'response')} in row {first_row + row}"
    return found


def read_columns(source: Source, wanted: Wanted, advance: Callable[[int], None]) -> Packed:
    """Read, check and pack; `advance` is told how many rows were read."""
    nested = is_nested(source, wanted)
    capacity = None if nested else source.num_rows
    groups = check.Groups(wanted.group or "")
    if wanted.group is None:
        groups.keys, groups.labels = [0], ["all rows"]
    state = Pass(groups, Rows(capacity), Rows(capacity), Rows(capacity))
    cut, uncut = list_columns(source, wanted) if nested else ([], {})
    needed = list(dict.fromkeys(wanted.names() + cut))
    num_rows = 0
    for first_row, batch in source.batches(needed):
        if batch.num_rows == 0:
            continue
        state.add(batch, first_row, wanted, nested)
        if nested:
            uncut |= unparallel(batch, cut, state.lengths[-1], first_row)
            for name in wanted.cut:
                if name in uncut:
                    raise InputError(f"column {name!r} of --cut must hold an entry per response, got {uncut[name]}")
            cut = [name for name in cut if name not in uncut]
        num_rows += batch.num_rows
        advance(batch.num_rows)
    if state.num_responses == 0:
        raise InputError(f"{source.path} must hold {'responses' if nested else 'rows'}, got none")
    packed = pack(state, wanted, num_rows)
    if nested:
        packed.splits, packed.cut = np.concatenate([[0], np.cumsum(np.concatenate(state.lengths))]), cut
        packed.uncut = uncut
    return packed


def pack(state: Pass, wanted: Wanted, num_rows: int) -> Packed:
    """Bring the responses of each prompt together. Copies the features only when the file does not hold them so."""
    codes = state.codes.taken(None)
    # a nested prompt without responses stays a group of size 0
    counts = np.bincount(codes, minlength=len(state.groups.keys))
    order = None if (np.diff(codes) >= 0).all() else np.argsort(codes, kind="stable")
    texts = pa.chunked_array(state.texts) if wanted.text is not None else None
    return Packed(
        num_rows=num_rows,
        order=order,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        group_key=np.asarray(state.groups.keys, dtype=np.int64),
        labels=state.groups.labels,
        reward=state.reward.taken(order) if wanted.reward is not None else None,
        vectors=state.vectors.taken(order) if wanted.embedding is not None else None,
        texts=texts if texts is None or order is None else texts.take(pa.array(order)),
    )
