"""Pass 2: the input once more, row by row, with four columns added; the output's path holds all of it or nothing.

    mrt_rank   pick order inside the prompt, from 0
    mrt_gain   what the pick added to the method's objective
    mrt_owner  number of the kept response that stands for this one, from 0
    mrt_share  part of the prompt's responses that this one stands for

Long tables number responses by input row, so a kept row's mrt_owner joins it with the input. Nested tables number them
inside their prompt; their lists are cut to the kept entries in pick order, and the added columns are lists too. With
all rows written, dropped responses have a null rank, gain and share, and mrt_owner tells who stands for them. Row order
is the input's.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from mrtkern.cli import InputError, raw_json
from mrtkern.cli.columns import is_bytes
from mrtkern.cli.packing import Packed, combined
from mrtkern.cli.reading import READ_ERRORS, Csv, Jsonl, Source, first_line, numbers

TYPES = {"mrt_rank": pa.int32(), "mrt_gain": pa.float64(), "mrt_owner": pa.int64(), "mrt_share": pa.float32()}
GROUP_ROWS, GROUP_BYTES = 1 << 17, 1 << 25  # a parquet row group is closed at either


class Columns(Protocol):
    """What is added for every response, in file order."""

    @property
    def types(self) -> dict[str, Any]:
        """Names and types."""

    @property
    def rank(self) -> Any:
        """[T] int32: the place of a response among those written of its prompt, -1: it is dropped."""

    def column(self, name: str, picked: Any) -> Any:
        """The column `name` for the responses `picked`."""


class Added(NamedTuple):
    """The columns of a selection; rank -1 marks the dropped responses."""

    rank: Any  # [T] int32
    gain: Any  # [T] float64
    owner: Any  # [T] int64
    share: Any  # [T] float32

    @property
    def types(self) -> dict[str, Any]:
        """Names and types."""
        return TYPES

    def column(self, name: str, picked: Any) -> Any:
        """The column `name` for the responses `picked`, null where a dropped response has no value."""
        is_dropped = (self.rank[picked] < 0) if name != "mrt_owner" else None
        return pa.array(getattr(self, name.removeprefix("mrt_"))[picked], TYPES[name], mask=is_dropped)


def added(packed: Packed, selection: Any) -> Added:
    """From packed places to file order."""
    T = int(packed.offsets[-1])
    places = np.arange(T) if packed.order is None else packed.order
    ids, kept = selection.ids.numpy(), selection.offsets.numpy()
    owner = selection.owner.numpy()
    if packed.splits is None:
        number = places
    else:
        number = np.arange(T) - np.repeat(packed.offsets[:-1], np.diff(packed.offsets))
    out = Added(
        np.full(T, -1, dtype=np.int32), np.zeros(T), np.full(T, -1, dtype=np.int64), np.zeros(T, dtype=np.float32)
    )
    rows = places[ids]
    out.rank[rows] = np.arange(len(ids)) - np.repeat(kept[:-1], np.diff(kept))
    out.gain[rows] = selection.gains.numpy()
    out.share[rows] = selection.share.numpy()
    out.owner[places] = np.where(owner < 0, -1, number[np.maximum(owner, 0)])
    return out


class Temporary:
    """A file beside `path` that takes its place at `commit` and vanishes otherwise."""

    file: Any

    def __init__(self, path: Path, role: str) -> None:
        self.path, self.role, self.given = Path(os.path.realpath(path)), role, path
        self.name = self.path.with_name(f".{self.path.name[:100]}.{secrets.token_hex(4)}.tmp")
        self.file = io.BytesIO()

    def opened(self, stack: contextlib.ExitStack) -> Temporary:
        """Open the file; `stack` knows of it before it exists, so that no signal comes between."""
        if self.path.is_dir():
            raise InputError(f"{self.role} must be a file, got the folder {str(self.given)!r}")
        stack.push(self)
        try:
            self.file = self.name.open("xb")
        except FileNotFoundError as error:
            parent = self.given.parent
            folder = self.path.parent if parent.is_dir() else parent  # the former where the path is a link
            raise InputError(f"{self.role} folder {str(folder)!r} does not exist") from error
        except OSError as error:
            raise InputError(f"{self.role} {str(self.given)!r} cannot be written: {error.strerror or error}") from error
        return self

    def __enter__(self) -> Temporary:
        return self

    def commit(self) -> None:
        """Put the finished file in its place."""
        try:
            self.file.close()
            os.replace(self.name, self.path)
        except OSError as error:
            raise InputError(f"{self.role} {str(self.path)!r} cannot be written: {error.strerror or error}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.file.close()
        finally:
            self.name.unlink(missing_ok=True)  # absent after commit


class ParquetSink:
    """Batches are gathered into row groups of a useful size."""

    def __init__(self, file: Any, schema: Any) -> None:
        nothing = pa.Table.from_batches([], schema)
        pq.write_table(nothing, io.BytesIO())  # refuses types that parquet has not, before the long work
        self.writer = pq.ParquetWriter(file, schema, compression="zstd")
        self.waiting: list[Any] = []

    def write(self, table: Any) -> None:
        """Add rows."""
        self.waiting.append(table)
        if sum(t.num_rows for t in self.waiting) >= GROUP_ROWS or sum(t.nbytes for t in self.waiting) >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            rows = pa.concat_tables(self.waiting)
            self.writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
        self.waiting = []

    def close(self) -> None:
        """Write the footer."""
        self._flush()
        self.writer.close()

    def abandon(self) -> None:
        """Let go of a file that will be removed; after `close`, nothing."""
        with contextlib.suppress(*READ_ERRORS):
            self.writer.close()
        self.writer.is_open = False  # else its destructor tries once more, and prints a traceback


class CsvSink:
    """Lists, structures and bytes become JSON text: a CSV cell holds nothing else."""

    def __init__(self, file: Any, schema: Any) -> None:
        self.schema = pa.schema([(item.name, pa.string() if opaque(item.type) else item.type) for item in schema])
        options = pcsv.WriteOptions(quoting_style="needed")
        pcsv.write_csv(pa.Table.from_batches([], self.schema), io.BytesIO(), options)
        self.writer = pcsv.CSVWriter(file, self.schema, write_options=options)

    def write(self, table: Any) -> None:
        """Add rows."""
        for i, item in enumerate(table.schema):
            if opaque(item.type):
                written = str if isinstance(item.type, pa.UuidType) else to_json
                values = [row[item.name] for row in to_python(table.select([i]))]
                cells = [None if cell is None else written(cell) for cell in values]
                table = table.set_column(i, item.name, pa.array(cells, pa.string()))
        self.writer.write_table(table)

    def close(self) -> None:
        """Write what pyarrow holds back."""
        self.writer.close()

    def abandon(self) -> None:
        """Let go of a file that will be removed; after `close`, nothing."""
        with contextlib.suppress(*READ_ERRORS):
            self.writer.close()


class JsonlSink:
    """One object a line; numbers that JSON has not become null."""

    def __init__(self, file: Any, schema: Any) -> None:
        self.file = file
        self.floats = [item.name for item in schema if item.type in (pa.float32(), pa.list_(pa.float32()))]

    def write(self, table: Any) -> None:
        """Add rows."""
        for first in range(0, table.num_rows, 1024):
            for row in to_python(table.slice(first, 1024)):
                row.update({name: shortest(row[name]) for name in self.floats})
                self.file.write(to_json(row).encode() + b"\n")

    def close(self) -> None:
        """Nothing is left to write."""

    def abandon(self) -> None:
        """Nothing is held."""


SINKS: dict[str, Callable[[Any, Any], Any]] = {".parquet": ParquetSink, ".csv": CsvSink, ".jsonl": JsonlSink}


def opaque(kind: Any) -> bool:
    """Whether a CSV cell cannot hold the type itself."""
    return bool(pa.types.is_nested(kind) or is_bytes(kind) or isinstance(kind, pa.BaseExtensionType))


def to_python(table: Any) -> list[dict[str, Any]]:
    """The rows as Python has them; nanoseconds, which it lacks, are text, as are all times beside years it lacks."""
    for is_every in (False, True):
        fields = [item.with_type(without_times(item.type, is_every)) for item in table.schema]
        try:
            return list(table.cast(pa.schema(fields)).to_pylist())
        except (ValueError, OverflowError):
            if is_every:
                raise
    raise AssertionError


def without_times(kind: Any, is_every: bool) -> Any:
    """A type with text for times in nanoseconds, or for all times, in lists and structures too."""
    t = pa.types
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        entry = without_times(kind.value_type, is_every)
        return kind if entry == kind.value_type else pa.large_list(entry)
    if t.is_struct(kind):
        return pa.struct([field.with_type(without_times(field.type, is_every)) for field in kind])
    is_text = t.is_temporal(kind) and (is_every or getattr(kind, "unit", "") == "ns")
    return pa.string() if is_text else kind


def shortest(value: Any) -> Any:
    """A float32, or a list of them, with no more digits than it has."""
    if isinstance(value, list):
        return [shortest(entry) for entry in value]
    return None if value is None else float(str(np.float32(value)))


def to_json(value: Any) -> str:
    """Compact JSON of what pyarrow hands out as Python objects."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=plain, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value, default=plain)
    except ValueError:
        return to_json(without_nan(value))
    return text


def plain(value: Any) -> str:
    """Bytes as base64, dates and decimals as their text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def without_nan(value: Any) -> Any:
    """The value with null for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    return [without_nan(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def check_schema(source: Source, ending: str, names: Iterable[str] = TYPES, command: str = "select") -> None:
    """Refuse, before the long work, what the output could not hold; names: of the columns that `command` adds."""
    for name in names:
        if name in source.schema.names:
            raise InputError(f"{source.path} must not have a column {name!r}: {command} adds it")
    try:
        SINKS[ending](io.BytesIO(), source.schema).close()
    except READ_ERRORS as error:
        raise InputError(
            f"the columns of {source.path} cannot be written as {ending[1:]}: {first_line(error)}"
        ) from error


def output_schema(source: Source, packed: Packed, ending: str, types: dict[str, Any]) -> Any:
    """The schema of the output: the input's columns, then the added ones."""
    base = source.settled_types() if isinstance(source, Csv) and ending != ".csv" else source.schema
    if isinstance(source, Jsonl) and ending == ".csv":
        base = pa.schema([(item.name, pa.string() if opaque(item.type) else item.type) for item in base])
    for name in packed.cut:  # a cut list has no fixed size any more
        i = base.get_field_index(name)
        if pa.types.is_fixed_size_list(base.field(i).type):
            base = base.set(i, pa.field(name, pa.list_(base.field(i).type.value_field)))
    for name, kind in types.items():
        base = base.append(pa.field(name, kind if packed.splits is None else pa.list_(kind)))
    return base


def as_table(batch: Any) -> Any:
    """A batch as a table."""
    return batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])


def long_rows(table: Any, first_row: int, columns: Columns, all_rows: bool) -> Any:
    """The rows to be written of a batch of responses."""
    picked = np.arange(first_row, first_row + table.num_rows)
    if not all_rows:
        picked = picked[columns.rank[picked] >= 0]
        table = table.take(pa.array(picked - first_row))
    for name in columns.types:
        table = table.append_column(name, columns.column(name, picked))
    return table


def nested_rows(table: Any, first_row: int, columns: Columns, all_rows: bool, packed: Packed) -> Any:
    """The rows to be written of a batch of prompts, their lists cut to the kept entries in pick order."""
    splits = packed.splits[first_row : first_row + table.num_rows + 1]
    picked = np.arange(splits[0], splits[-1])
    row = np.repeat(np.arange(table.num_rows), np.diff(splits))
    if not all_rows:
        is_kept = columns.rank[picked] >= 0
        picked, row = picked[is_kept], row[is_kept]
        order = np.lexsort((columns.rank[picked], row))
        picked, row = picked[order], row[order]
    kept = np.bincount(row, minlength=table.num_rows)
    ends = np.concatenate([[0], np.cumsum(kept)])

    def listed(values: Any) -> Any:
        return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values)

    for name in [] if all_rows else packed.cut:
        i = table.schema.get_field_index(name)
        if pa.types.is_string(table.schema.field(i).type):  # of JSON lines for CSV: already cut
            continue
        entries = combined(table, name).flatten().take(pa.array(picked - splits[0]))
        kind = table.schema.field(i).type
        kind = pa.list_(kind.value_field) if pa.types.is_fixed_size_list(kind) else kind
        table = table.set_column(i, pa.field(name, kind), listed(entries).cast(kind))
    for name, kind in columns.types.items():
        table = table.append_column(name, listed(columns.column(name, picked)).cast(pa.list_(kind)))
    has_kept = (kept > 0) | (np.diff(splits) == 0)
    return table if all_rows else table.filter(pa.array(has_kept))


def picked_of(row: int, packed: Packed, columns: Columns, all_rows: bool) -> list[int] | None:
    """The responses of a row that are written, in the order in which they are; None: the row is not."""
    splits = packed.splits
    ids = np.arange(row, row + 1) if splits is None else np.arange(splits[row], splits[row + 1])
    if all_rows or not len(ids):
        return list(ids)
    kept = ids[columns.rank[ids] >= 0]
    return list(kept[np.argsort(columns.rank[kept], kind="stable")]) if len(kept) else None


def copy_lines(
    source: Jsonl, packed: Packed, columns: Columns, all_rows: bool, file: Any, advance: Callable[[int], None]
) -> None:
    """JSON lines to JSON lines: the input's text, lists cut, with the added entries before the closing brace."""
    cut = [] if all_rows else packed.cut
    for first_row, lines in source.lines():
        for r, line in enumerate(lines, start=first_row):
            picked = picked_of(r, packed, columns, all_rows)
            if picked is None:
                continue
            entries = {name: columns.column(name, picked).to_pylist() for name in columns.types}
            entries |= {name: shortest(entries[name]) for name, kind in columns.types.items() if kind == pa.float32()}
            if packed.splits is None:
                entries = {name: values[0] for name, values in entries.items()}
            else:
                line = with_cut_lists(line, cut, [int(i - packed.splits[r]) for i in picked])
            body = line.rstrip()[:-1].rstrip()
            file.write(body + (b"" if body.endswith(b"{") else b", ") + to_json(entries)[1:].encode() + b"\n")
        advance(len(lines))


def with_cut_lists(line: bytes, names: list[str], picked: list[int]) -> bytes:
    """A line of JSON with the entries `picked` alone in the lists of `names`; all else is as it was."""
    text = line.decode()
    found = raw_json.members(text) if names else {}
    for span in sorted((found[name] for name in names), reverse=True):
        text = text[: span[0]] + raw_json.cut(text, span, picked) + text[span[1] :]
    return text.encode()


def with_raw_cells(
    table: Any, lines: list[bytes], first_row: int, packed: Packed, columns: Columns, all_rows: bool
) -> Any:
    """JSON lines for CSV: lists and structures are their text in the input, cut where they are cut."""
    names = [item.name for item in table.schema if opaque(item.type)]
    cells: dict[str, list[str | None]] = {name: [] for name in names}
    for r, line in enumerate(lines if names else [], start=first_row):
        text = line.decode()
        found = raw_json.members(text)
        picked = picked_of(r, packed, columns, all_rows)
        for name in names:
            span = found.get(name, (0, 0))
            if name in packed.cut and picked is not None and not all_rows:
                cells[name].append(raw_json.cut(text, span, [int(i - packed.splits[r]) for i in picked]))
            else:
                cells[name].append(None if text[slice(*span)] in ("", "null") else text[slice(*span)])
    for name in names:
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(cells[name], pa.string()))
    return table


def write_rows(
    source: Source, packed: Packed, columns: Columns, all_rows: bool, out: Temporary, advance: Callable[[int], None]
) -> None:
    """Stream the input into `out`, in the format of its ending."""
    ending = out.path.suffix.lower()
    try:
        if isinstance(source, Jsonl) and ending == ".jsonl":
            copy_lines(source, packed, columns, all_rows, out.file, advance)
            return
        schema = output_schema(source, packed, ending, columns.types)
        sink = SINKS[ending](out.file, schema)
        blocks = source.lines() if isinstance(source, Jsonl) and ending == ".csv" else None
        try:
            for first_row, batch in source.batches():
                table = typed(as_table(batch), schema) if isinstance(source, Csv) else as_table(batch)
                if blocks is not None:
                    table = with_raw_cells(table, next(blocks)[1], first_row, packed, columns, all_rows)
                if packed.splits is None:
                    table = long_rows(table, first_row, columns, all_rows)
                else:
                    table = nested_rows(table, first_row, columns, all_rows, packed)
                sink.write(table.cast(schema))
                advance(batch.num_rows)
            sink.close()
        finally:
            sink.abandon()
    except READ_ERRORS as error:
        raise InputError(f"output {str(out.path)!r} cannot be written: {first_line(error)}") from error


def typed(table: Any, schema: Any) -> Any:
    """A batch of CSV with numbers where `schema` has them."""
    for i, name in enumerate(table.schema.names):
        if not pa.types.is_string(schema.field(i).type):
            table = table.set_column(i, name, numbers(table.column(i), schema.field(i).type))
    return table
