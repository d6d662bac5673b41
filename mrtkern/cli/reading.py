"""Tables read as streams: parquet, JSON lines and CSV, a few thousand rows at a time, more than once.

    source = open_source(path);  source.schema;  for first_row, batch in source.batches(["prompt", "reward"]): ...

Only one block (CSV, JSON lines: 8 MiB) or one batch (parquet: about 64 MiB, at least a row) is in memory at a time. A
file that cannot be read is an InputError of one sentence. CSV has no types: its columns are text, and `settled_types`
says which hold only numbers. JSON lines are parsed by pyarrow; `lines` gives the raw ones, so that a writer can copy
them unchanged.
"""

from __future__ import annotations

import csv
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
BATCH_ROWS, FIRST_ROWS = 1 << 14, 1 << 6  # of a parquet batch: at most, and before the size of rows is known
BATCH_BYTES = 1 << 26  # about this much of a parquet file is decoded at a time: pyarrow refuses 2 GiB of nested text
MAX_DEPTH = 256  # pyarrow 26 parses JSON by recursion and overflows the stack below 100,000 levels
NOT_A_FLOAT = r"^[+-]?(0[0-9]|[0-9]{16,}$)"  # codes and ids: a float would drop their zeros or their last digits
LARGEST_CELL = 2**31 - 1  # characters; Python's own limit is 128 Ki
UNDECODED = re.compile("[\udc80-\udcff]")  # a byte that is no UTF-8, as "surrogateescape" hands it out
EXACT = 2**53  # from here on float64 leaves out whole numbers
WHOLE_TYPES = (pa.uint64(), pa.decimal128(38, 0), pa.decimal256(76, 0))  # for what int64 does not hold
TOO_MUCH = (pa.ArrowNotImplementedError, pa.ArrowCapacityError, MemoryError)  # of a batch with too many rows
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


def line_of(path: Path, row: int) -> str:
    """A line of a CSV file as part of a sentence."""
    return f"row {row} of {path}" if row >= 0 else f"the header of {path}"


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
    rounded: frozenset[str] = frozenset()  # columns whose whole numbers from 2**53 on were rounded by reading

    def batches(self, columns: list[str] | None = None) -> Batches:
        """(first row number, batch) in file order; `columns` None: all of them."""
        raise NotImplementedError


class Parquet(Source):
    """Rows are decoded some at a time, and only the columns asked for; views of text and lists become copies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                schema, self.num_rows = file.schema_arrow, file.metadata.num_rows
                check_names(path, schema.names)
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        fields = [item.with_type(without_views(item.type)) for item in schema]
        self.schema = pa.schema(fields, schema.metadata)

    def batches(self, columns: list[str] | None = None) -> Batches:
        row = 0
        try:
            with pq.ParquetFile(self.path, pre_buffer=False) as file:  # True holds the whole file in memory
                size = FIRST_ROWS
                for group in range(file.num_row_groups):
                    for fitting, batch in self._group(file, group, size, columns):
                        yield row, batch
                        row += batch.num_rows
                        size = fitting
        except READ_ERRORS as error:
            raise unreadable(self.path, error, f" after row {row - 1}" if row else "") from error
        if row != self.num_rows:
            raise InputError(f"{self.path} holds {row} rows but its footer promises {self.num_rows}")

    def _group(self, file: Any, group: int, size: int, columns: list[str] | None) -> Iterator[tuple[int, Any]]:
        """(rows to ask for next, batch). Another size starts the row group anew and skips what was handed out."""
        done, is_over = 0, False
        while not is_over:
            first, is_over = done, True
            try:
                for batch in self._from(file, group, size, done, columns):
                    done += batch.num_rows
                    fitting = BATCH_BYTES * batch.num_rows // max(batch.nbytes, 1)
                    fitting = min(1 << max(fitting, 1).bit_length() - 1, BATCH_ROWS)
                    yield fitting, batch
                    if 2 * fitting < size or (first == 0 and done == batch.num_rows and fitting > size):
                        size, is_over = fitting, False
                        break
            except TOO_MUCH:
                if size == 1:
                    raise
                size, is_over = max(size // 8, 1), False

    def _from(self, file: Any, group: int, size: int, first: int, columns: list[str] | None) -> Iterator[Any]:
        """The batches of a row group from its row `first` on."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        end = 0
        for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=columns):
            start, end = end, end + batch.num_rows
            if end > first:
                batch.validate(full=True)  # a damaged page can decode to offsets that point nowhere
                batch = batch if columns is None else batch.select(columns)
                if batch.schema.types != schema.types:
                    arrays = list(map(copied, batch.columns, schema.types))
                    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
                    batch.validate(full=True)
                yield batch.slice(max(first - start, 0))


class Csv(Source):
    """Every column is read as text, so nothing of it is changed by reading; an empty cell is an empty text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = self._checked()
        try:
            with self._open(None, None) as reader:
                names = reader.schema.names
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        check_names(path, names)
        self.schema = pa.schema([(name, pa.string()) for name in names])

    def _checked(self, errors: str = "strict") -> int:
        """How many rows there are. Refuses by its row what pyarrow takes for a cell: a quote that never closes."""
        limit = csv.field_size_limit(LARGEST_CELL)
        row, width = -1, 0  # the header
        try:
            for cells in self._cells(errors):
                if errors != "strict" and UNDECODED.search("".join(cells)):
                    raise InputError(f"{line_of(self.path, row)} must be UTF-8, got {ascii(''.join(cells))[:40]}")
                width = width or len(cells)
                if len(cells) != width:
                    raise InputError(f"{line_of(self.path, row)} must have {width} cells, got {len(cells)}")
                row += 1
        except UnicodeDecodeError:
            return self._checked("surrogateescape")  # finds the row
        except csv.Error as error:
            got = "the end of the file" if "unexpected end" in str(error) else first_line(error)
            raise InputError(f"{line_of(self.path, row)} must close every quote, got {got}") from error
        except OSError as error:
            raise unreadable(self.path, error) from error
        finally:
            csv.field_size_limit(limit)
        return row

    def _cells(self, errors: str) -> Iterator[list[str]]:
        with self.path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
            yield from filter(None, csv.reader(file, strict=True))  # without blank lines

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
        if row != self.num_rows:
            raise InputError(f"{self.path} holds {self.num_rows} rows but {row} were read")

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
    return pc.cast(pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column), wanted)


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
    """One JSON object a line. Types are those that fit every block: a first pass finds them.

    Whole numbers that int64 does not hold are uint64 or a decimal where all numbers of their column are whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = 0
        found, large = pa.schema([]), set()
        for row, lines in self.lines():
            table = self._parse(row, lines, None, found)
            found = self._unify(found, row, lines, table.schema)
            large |= {name for name in table.schema.names if name not in large and has_large(table.column(name))}
            self.num_rows += len(lines)
        check_names(path, found.names)
        rounded = {name for name in large if with_floats(found.field(name).type, pa.null()) != found.field(name).type}
        exact = {name: kind for name in rounded if (kind := self._whole(found.field(name))) is not None}
        self.rounded = frozenset(rounded - set(exact))
        self.schema = pa.schema([(field.name, exact.get(field.name, field.type)) for field in found])

    def _whole(self, field: Any) -> Any:
        """The type that holds every number of a column as it is written, if they are whole; else None."""
        for whole in WHOLE_TYPES:
            schema = pa.schema([(field.name, with_floats(field.type, whole))])
            try:
                for _, lines in self.lines():
                    read_objects(lines, schema)
            except READ_ERRORS:
                continue
            return schema.field(0).type
        return None

    def _unify(self, found: Any, row: int, lines: list[bytes], schema: Any) -> Any:
        """`found` with what a block has; `schema` is the block's."""
        schema = pa.schema([(field.name, untimed(field.type)) for field in schema])
        try:
            return pa.unify_schemas([found, schema], promote_options="permissive")
        except READ_ERRORS as error:
            if len(lines) > 1:
                self._unify_lines(found, row, lines)
            for field in schema:
                try:
                    pa.unify_schemas([found, pa.schema([field])], promote_options="permissive")
                except READ_ERRORS:
                    types = f"{field.type} after {found.field(field.name).type} in row {row}"
                    raise InputError(f"column {field.name!r} must have one type, got {types}") from error
            raise unreadable(self.path, error) from error

    def _unify_lines(self, found: Any, row: int, lines: list[bytes]) -> None:
        """Refuse the first line whose types are others, by its row."""
        for i, line in enumerate(lines):
            found = self._unify(found, row + i, [line], self._parse(row + i, [line], None).schema)

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

    def _parse(self, row: int, lines: list[bytes], schema: Any, found: Any = None) -> Any:
        """A block as a table, of a schema or of the types that it has; `found` are those of the blocks before."""
        for i, line in enumerate(lines):
            if depth(line) > MAX_DEPTH:
                raise InputError(f"row {row + i} of {self.path} must not nest deeper than {MAX_DEPTH} levels")
        try:
            table = read_objects(lines, schema)
        except READ_ERRORS as error:
            raise self._culprit(row, lines, error, found) from error
        if table.num_rows != len(lines):
            raise self._culprit(row, lines, ValueError("each line must hold one object"), found)
        return table if schema is None else table.select(schema.names)

    def _culprit(self, row: int, lines: list[bytes], error: BaseException, found: Any) -> InputError:
        """Name the row: Python's parser goes line by line, pyarrow counts within what it was given."""
        for i, line in enumerate(lines):
            try:
                is_object = isinstance(json.loads(line), dict)
                reason = "" if is_object else "not an object"
            except (ValueError, RecursionError) as problem:
                reason = first_line(problem)
            if reason:
                return InputError(f"row {row + i} of {self.path} must be one JSON object on one line, got {reason}")
        if len(lines) > 1:
            self._unify_lines(pa.schema([]) if found is None else found, row, lines)
        text = re.sub(r"\bin row (\d+)", lambda where: f"in row {row + int(where[1])}", str(error))
        changed = re.search(r"Column\(/(.*)\) changed from (\w+) to (\w+) (in row \d+)", text, re.DOTALL)
        if changed:
            name, before, after, where = changed.groups()
            return InputError(f"column {name!r} must have one type, got {after} after {before} {where}")
        rows = f" in row {row}" if len(lines) == 1 else f" in rows {row} to {row + len(lines) - 1}"
        return unreadable(self.path, ValueError(text), "" if text != str(error) else rows)


def read_objects(lines: list[bytes], schema: Any) -> Any:
    """Lines of JSON as a table; with a schema, its columns alone."""
    block = b"\n".join(lines) + b"\n"
    unnamed = "infer" if schema is None else "ignore"
    table = pjson.read_json(
        io.BytesIO(block),
        read_options=pjson.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=pjson.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unnamed),
    ).combine_chunks()
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:  # pyarrow 26 drops the nulls before the first value of a list whose type it has to find
        if schema is not None:
            raise
        return read_objects(lines, table.schema)
    return table


def has_large(column: Any) -> bool:
    """Whether there is a number, in lists and structures too, that float64 may have rounded."""
    kind = column.type
    if pa.types.is_list(kind):
        return has_large(pc.list_flatten(column))
    if pa.types.is_struct(kind):
        return any(has_large(part) for part in column.flatten())
    if not pa.types.is_int64(kind) and not pa.types.is_float64(kind):
        return False
    ends = pc.min_max(column)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    return low is not None and max(-low, high) >= EXACT


def with_floats(kind: Any, wanted: Any) -> Any:
    """A type with another one for float64, in lists and structures too."""
    if pa.types.is_list(kind):
        return pa.list_(with_floats(kind.value_type, wanted))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, with_floats(field.type, wanted)) for field in kind])
    return wanted if pa.types.is_float64(kind) else kind


def without_views(kind: Any) -> Any:
    """A type with copies instead of views, in lists and structures too: pyarrow 26 cannot take or filter views."""
    t = pa.types
    if t.is_string_view(kind) or t.is_binary_view(kind):
        return pa.large_string() if t.is_string_view(kind) else pa.large_binary()
    if t.is_struct(kind):
        return pa.struct([field.with_type(without_views(field.type)) for field in kind])
    if t.is_map(kind):
        parts = (kind.key_field, kind.item_field)
        return pa.map_(*(field.with_type(without_views(field.type)) for field in parts), keys_sorted=kind.keys_sorted)
    if not hasattr(kind, "value_field"):
        return kind
    entry = kind.value_field.with_type(without_views(kind.value_type))
    if t.is_fixed_size_list(kind):
        return pa.list_(entry, kind.list_size)
    return pa.list_(entry) if t.is_list(kind) else pa.large_list(entry)


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


def copied(column: Any, kind: Any) -> Any:
    """A column in its type without views."""
    if not pa.types.is_list_view(column.type) and not pa.types.is_large_list_view(column.type):
        return column if column.type == kind else column.cast(kind)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())  # pyarrow 26's own cast forgets the last
    entries = copied(column.flatten(), kind.value_type)
    return pa.LargeListArray.from_arrays(ends, entries, type=kind, mask=column.is_null())


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
