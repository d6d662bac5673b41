"""Tables read as streams: parquet, JSON lines and CSV, a few thousand rows at a time, more than once.

    source = open_source(path);  source.schema;  for first_row, batch in source.batches(["prompt", "reward"]): ...

Only one block (CSV, JSON lines: 8 MiB) or one row group (parquet) is in memory at a time. A file that cannot be read is
an InputError of one sentence. CSV has no types: its columns are text, and `settled_types` says which hold only numbers.
JSON lines are parsed by pyarrow; `lines` gives the raw ones, so that a writer can copy them unchanged.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.json as pjson
import pyarrow.parquet as pq

from mrtkern.cli import InputError

ENDINGS = (".parquet", ".jsonl", ".csv")
BLOCK_BYTES = 1 << 23  # holds a row of 100,000 numbers; small beside the features of any table worth streaming
BATCH_ROWS = 1 << 14
MAX_DEPTH = 256  # pyarrow 26 parses JSON by recursion and overflows the stack below 100,000 levels
NOT_A_FLOAT = r"^[+-]?(0[0-9]|[0-9]{16,}$)"  # codes and ids: a float would drop their zeros or their last digits
READ_ERRORS = (pa.ArrowException, OSError, MemoryError, OverflowError, ValueError, RecursionError)

Batches = Iterator[tuple[int, Any]]  # (input row number of the first row, pyarrow.RecordBatch or Table)


def ending(path: Path, role: str) -> str:
    """The format of a file by its ending, or an InputError."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{role} must end in {', '.join(ENDINGS)}, got {str(path)!r}")
    return path.suffix.lower()


def first_line(error: BaseException) -> str:
    """An error of pyarrow as part of a sentence."""
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:200].rstrip(".")


def unreadable(path: Path, error: BaseException, where: str = "") -> InputError:
    """One sentence for a file that pyarrow refuses."""
    return InputError(f"{path} cannot be read as {path.suffix[1:]}{where}: {first_line(error)}")


def check_names(path: Path, names: list[str]) -> None:
    """Refuse a table in which a column name does not name one column."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has {names.count(name)} columns named {name!r}: column names must differ")


class Source:
    """A table on disk: `schema` (pyarrow), `num_rows` (None when only reading tells), `batches(columns)`."""

    path: Path
    schema: Any
    num_rows: int | None = None

    def batches(self, columns: list[str] | None = None) -> Batches:
        """(first row number, batch) in file order; `columns` None: all of them."""
        raise NotImplementedError


class Parquet(Source):
    """Row groups are decoded one at a time, and only the columns asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                self.schema, self.num_rows = file.schema_arrow, file.metadata.num_rows
                check_names(path, self.schema.names)
        except READ_ERRORS as error:
            raise unreadable(path, error) from error

    def batches(self, columns: list[str] | None = None) -> Batches:
        row = 0
        try:
            with pq.ParquetFile(self.path, pre_buffer=False) as file:  # True holds the whole file in memory
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                    batch.validate(full=True)  # a damaged page can decode to offsets that point nowhere
                    yield row, batch if columns is None else batch.select(columns)
                    row += batch.num_rows
        except READ_ERRORS as error:
            raise unreadable(self.path, error, f" after row {row - 1}" if row else "") from error
        if row != self.num_rows:
            raise InputError(f"{self.path} holds {row} rows but its footer promises {self.num_rows}")


class Csv(Source):
    """Every column is read as text, so nothing of it is changed by reading; an empty cell is an empty text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with self._open(None, None) as reader:
                names = reader.schema.names
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        check_names(path, names)
        self.schema = pa.schema([(name, pa.string()) for name in names])

    def _open(self, names: list[str] | None, columns: list[str] | None) -> Any:
        return pcsv.open_csv(
            self.path,
            read_options=pcsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pcsv.ParseOptions(newlines_in_values=True),
            convert_options=pcsv.ConvertOptions(
                column_types={name: pa.string() for name in names or []},
                include_columns=columns,
                strings_can_be_null=False,
            ),
        )

    def batches(self, columns: list[str] | None = None) -> Batches:
        row = 0
        try:
            with self._open(self.schema.names, columns) as reader:
                for batch in reader:
                    yield row, batch
                    row += batch.num_rows
        except READ_ERRORS as error:
            raise unreadable(self.path, error, f" after row {row - 1}" if row else "") from error

    def settled_types(self) -> Any:
        """The schema with int64 or double for the columns in which every cell that is not empty is such a number."""
        guesses = {name: [pa.int64(), pa.float64()] for name in self.schema.names}
        for _, batch in self.batches():
            for name in self.schema.names:
                while guesses[name] and not casts(batch.column(name), guesses[name][0]):
                    guesses[name].pop(0)
        return pa.schema([(name, (guesses[name] or [pa.string()])[0]) for name in self.schema.names])


def numbers(column: Any, wanted: Any) -> Any:
    """A text column as numbers, empty cells as null; pyarrow.ArrowInvalid when a cell is something else."""
    return pc.cast(pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column), wanted)


def casts(column: Any, wanted: Any) -> bool:
    """Whether every cell is a number of this type that says the same as its text: 007 and a 20-digit id stay text."""
    try:
        found = numbers(column, wanted)
    except pa.ArrowInvalid:
        return False
    if pa.types.is_integer(wanted):
        return pc.all(pc.equal(pc.cast(found, pa.string()), column)).as_py() is not False
    return not pc.any(pc.match_substring_regex(column, NOT_A_FLOAT)).as_py()


class Jsonl(Source):
    """One JSON object a line. Types are those that fit every block: a first pass finds them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = 0
        found = pa.schema([])
        for row, lines in self.lines():
            schema = self._parse(row, lines, None).schema
            schema = pa.schema([(field.name, untimed(field.type)) for field in schema])
            found = self._unify(found, schema, row)
            self.num_rows += len(lines)
        check_names(path, found.names)
        self.schema = found

    def _unify(self, found: Any, schema: Any, row: int) -> Any:
        try:
            return pa.unify_schemas([found, schema], promote_options="permissive")
        except READ_ERRORS as error:
            for name in schema.names:
                if name in found.names and found.field(name).type != schema.field(name).type:
                    types = f"{found.field(name).type} before row {row} and {schema.field(name).type} after"
                    raise InputError(f"column {name!r} must have one type, got {types}") from error
            raise unreadable(self.path, error) from error

    def lines(self) -> Iterator[tuple[int, list[bytes]]]:
        """(first row number, raw lines): blank lines are skipped and do not count as rows."""
        row = 0
        try:
            with self.path.open("rb") as file:
                if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark is no part of the first object
                    file.seek(0)
                while block := file.readlines(BLOCK_BYTES):
                    lines = [line.rstrip(b"\r\n") for line in block if line.strip()]
                    if lines:
                        yield row, lines
                    row += len(lines)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def batches(self, columns: list[str] | None = None) -> Batches:
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        for row, lines in self.lines():
            yield row, self._parse(row, lines, wanted)

    def _parse(self, row: int, lines: list[bytes], schema: Any) -> Any:
        block = b"\n".join(lines) + b"\n"
        for i, line in enumerate(lines):
            if depth(line) > MAX_DEPTH:
                raise InputError(f"row {row + i} of {self.path} must not nest deeper than {MAX_DEPTH} levels")
        try:
            table = pjson.read_json(
                io.BytesIO(block),
                read_options=pjson.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pjson.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
                ),
            ).combine_chunks()
            table.validate(full=True)
        except READ_ERRORS as error:
            raise self._culprit(row, lines, error) from error
        if table.num_rows != len(lines):
            raise self._culprit(row, lines, ValueError("each line must hold one object"))
        return table if schema is None else table.select(schema.names)

    def _culprit(self, row: int, lines: list[bytes], error: BaseException) -> InputError:
        """Name the row: Python's parser goes line by line, pyarrow counts within what it was given."""
        for i, line in enumerate(lines):
            try:
                is_object = isinstance(json.loads(line), dict)
                reason = "" if is_object else "not an object"
            except (ValueError, RecursionError) as problem:
                reason = first_line(problem)
            if reason:
                return InputError(f"row {row + i} of {self.path} must be one JSON object on one line, got {reason}")
        changed = re.search(r"Column\(/(.*)\) changed from (\w+) to (\w+) in row (\d+)", str(error), re.DOTALL)
        if changed:
            name, before, after, place = changed.groups()
            raise InputError(
                f"column {name!r} must have one type, got {after} after {before} in row {row + int(place)}"
            )
        return unreadable(self.path, error, f" in rows {row} to {row + len(lines) - 1}")


def untimed(kind: Any) -> Any:
    """Text that looks like a date stays text: pyarrow's guess would rewrite it."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(untimed(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, untimed(field.type)) for field in kind])
    return kind


def depth(line: bytes) -> int:
    """How deep a line of JSON nests."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return 0
    bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b'""', line, flags=re.DOTALL)
    letters = np.frombuffer(bare, dtype=np.uint8)
    opened = np.isin(letters, (ord("["), ord("{"))).astype(np.int64) - np.isin(letters, (ord("]"), ord("}")))
    return int(opened.cumsum().max(initial=0))


def open_source(path: Path) -> Source:
    """The table at `path`, by its ending; its first block is read here, so an unreadable file is refused at once."""
    kind = ending(path, "input")
    if not path.is_file():
        if not path.exists():
            raise InputError(f"input {str(path)!r} does not exist")
        raise InputError(f"input must be a file, got {str(path)!r}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} must hold rows, got an empty file")
    source: Source = {".parquet": Parquet, ".csv": Csv, ".jsonl": Jsonl}[kind](path)
    if source.num_rows == 0:
        raise InputError(f"{path} must hold rows, got none")
    return source
