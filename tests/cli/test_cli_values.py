"""Values of real files come through `mrtkern select` as they were: numbers, ids, lists, every type of column."""

from __future__ import annotations

import base64
import csv
import datetime
import decimal
import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("rich")

from mrtkern.__main__ import main  # noqa: E402
from mrtkern.cli import reading  # noqa: E402

ENDINGS = (".parquet", ".jsonl", ".csv")
WHOLE = 12345678901234567890  # above int64, and no float64


def select(source: Path, out: str, *options: str, k: int = 1) -> Path:
    """Run the command; the path of what it wrote."""
    target = source.with_name(out)
    features = [] if {"--text", "--embedding"} & set(options) else ["--text", "t"]
    assert main(["select", str(source), "-o", str(target), "--group-by", "p", "--k", str(k), *features, *options]) == 0
    return target


def jsonl(folder: Path, *lines: str) -> Path:
    """A file of these lines."""
    (folder / "in.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder / "in.jsonl"


def parquet(folder: Path, **columns: Any) -> Path:
    """A file with these columns."""
    pq.write_table(pa.table(columns), folder / "in.parquet")
    return folder / "in.parquet"


def cells(path: Path, name: str) -> list[Any]:
    """A column of an output."""
    if path.suffix == ".parquet":
        return list(pq.read_table(path)[name].to_pylist())
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
        return [row[name] for row in rows]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("first", [WHOLE, 2**63, 2**100, -(2**63) - 1, 10**75])
def test_large_ids_of_json_stay_apart(tmp_path: Path, first: int, ending: str) -> None:
    """float64 would make one prompt of them."""
    ids = [first, first, first + 1, first + 1, 3]
    source = jsonl(tmp_path, *(f'{{"p": {i}, "t": "word {n}"}}' for n, i in enumerate(ids)))
    assert [int(cell) for cell in cells(select(source, f"out{ending}"), "p")] == [first, first + 1, 3]


def test_ids_that_float64_makes_equal_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = jsonl(tmp_path, '{"p": 1.5, "t": "a"}', '{"p": 9007199254740993, "t": "b"}')
    assert (
        main(["select", str(source), "-o", str(tmp_path / "o.csv"), "--group-by", "p", "--k", "1", "--text", "t"]) == 2
    )
    rule = "column 'p' must hold prompt ids that are text or whole numbers, got one from 2**53 in row 1 beside others"
    assert rule in capsys.readouterr().err


NESTED = (
    '{"p": "a", "t": ["x","y","z"], "n":[12345678901234567890, 3,4.50], "m":{"k":1}, "d" : [{"a":1}, {"b":"]"}, null]}',
    '{"p": "b", "t": ["u"],"n":[3 ], "m":{"q":[3,4]},"d":[{"a":2.0}], "only here": "\\u00e9\\ud83d\\ude00"}',
    '{"t": [], "n":[], "d":[],"p": "c"}',
)
DIGITS = "9" * 5000  # more than Python reads into an int


def test_nested_json_lines_are_copied_but_for_their_cut_lists(tmp_path: Path) -> None:
    source = jsonl(tmp_path, *NESTED)
    lines = select(source, "out.jsonl", k=2).read_text(encoding="utf-8").splitlines()
    kept = [line.split(', "mrt_rank"')[0] + "}" for line in lines]
    ranks = json.loads(lines[0])["mrt_owner"]
    n, d, t = ["12345678901234567890", "3", "4.50"], ['{"a":1}', '{"b":"]"}', "null"], ['"x"', '"y"', '"z"']
    pair = [", ".join(column[i] for i in ranks) for column in (t, n, d)]
    assert kept[0] == f'{{"p": "a", "t": [{pair[0]}], "n":[{pair[1]}], "m":{{"k":1}}, "d" : [{pair[2]}]}}'
    assert kept[1:] == [NESTED[1].replace("[3 ]", "[3]"), NESTED[2]]
    whole = select(source, "all.jsonl", "--all-rows", k=2).read_text(encoding="utf-8").splitlines()
    assert [line.split(', "mrt_rank"')[0] + "}" for line in whole] == list(NESTED)
    assert json.loads(whole[0])["mrt_rank"][ranks[1]] == 1


def test_lists_of_json_are_their_own_text_in_csv(tmp_path: Path) -> None:
    out = select(jsonl(tmp_path, *NESTED), "out.csv", k=3)
    owners = [json.loads(cell) for cell in cells(out, "mrt_owner")]
    numbers = ["12345678901234567890", "3", "4.50"]
    assert cells(out, "n") == ["[" + ", ".join(numbers[i] for i in owners[0]) + "]", "[3]", "[]"]
    assert cells(out, "m") == ['{"k":1}', '{"q":[3,4]}', ""]


def test_numbers_of_any_length_are_copied(tmp_path: Path) -> None:
    line = f'{{"p": "a", "t": ["x"], "n": [0.{DIGITS}]}}'
    assert f'"n": [0.{DIGITS}]' in select(jsonl(tmp_path, line), "out.jsonl").read_text()


def test_rounded_numbers_of_other_formats_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = jsonl(tmp_path, *NESTED)
    for ending, is_named in ((".parquet", True), (".jsonl", False)):
        select(source, f"out{ending}", k=2)
        assert ("rounded, because numbers with fractions stand beside them: 'n'" in capsys.readouterr().out) == is_named


@pytest.mark.parametrize(
    "entry", ["[null, 1]", "[null, 0.5]", '[null, "a"]', "[null, [null, 1]]", '[null, {"a": [null, 1]}]']
)
def test_lists_of_json_may_begin_with_null(tmp_path: Path, entry: str) -> None:
    source = jsonl(tmp_path, f'{{"p": "a", "t": "x", "u": {entry}}}', '{"p": "b", "t": "y", "u": []}')
    for ending in (".parquet", ".jsonl"):
        assert cells(select(source, f"out{ending}"), "u") == [json.loads(entry), []]


def plain() -> dict[str, Any]:
    """Columns of types that pyarrow cannot filter, or cannot write as CSV, and of others."""
    texts, lists = ["a", "b", None], [["a"], ["b", None], []]
    return {
        "text views": pa.array(texts, pa.string_view()),
        "byte views": pa.array([b"a", None, b"\xff"], pa.binary_view()),
        "lists of views": pa.array(lists, pa.list_(pa.string_view())),
        "large lists of views": pa.array(lists, pa.large_list(pa.binary_view())),
        "short lists of views": pa.array([["a", "b"], ["c", None], None], pa.list_(pa.string_view(), 2)),
        "structures of views": pa.array([{"x": "a"}, None, {"x": None}], pa.struct([("x", pa.string_view())])),
        "maps of views": pa.array([[("a", "b")], [], None], pa.map_(pa.string_view(), pa.string_view())),
        "views of lists": pa.array([[1], None, [2, 3]], pa.list_view(pa.int64())),
        "views of lists of views": pa.array(
            [[["a"], None], None, [[], ["b"]]], pa.list_view(pa.list_view(pa.string_view()))
        ),
        "large views of lists": pa.array(lists, pa.large_list_view(pa.string())),
        "dictionaries": pa.array(texts).dictionary_encode(),
        "UUIDs": pa.array([bytes(16), bytes([200] * 16), None], pa.uuid()),
        "16 bytes": pa.array([bytes(16), bytes([200] * 16), None], pa.binary(16)),
        "JSON": pa.array(['{"a": 1}', "2", None], pa.json_(pa.string())),
        "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6.0).reshape(3, 2)),
        "nanoseconds": pa.array([1, None, 3], pa.timestamp("ns")),
        "durations": pa.array([1, None, 3], pa.duration("ns")),
        "lists of times": pa.array([[1], [None], None], pa.list_(pa.time64("ns"))),
        "times": pa.array([datetime.datetime(2020, 1, 2)] * 3, pa.timestamp("us", "UTC")),
        "decimals": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal(7)], pa.decimal128(38, 2)),
        "large numbers": pa.array([WHOLE, None, 2**64 - 1], pa.uint64()),
        "halves": pa.array(np.ones(3, dtype=np.float16)),
        "truth": pa.array([True, None, False]),
        "nothing": pa.nulls(3),
    }


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", plain())
def test_every_type_of_column_comes_through(tmp_path: Path, kind: str, ending: str, nested: bool) -> None:
    column = plain()[kind]
    texts = [["x"], ["y"], ["z"]] if nested else ["x", "y", "z"]
    source = parquet(tmp_path, p=["a", "b", "c"], t=texts, u=column)
    found = cells(select(source, f"out{ending}"), "u")
    if ending == ".parquet":
        assert found == pq.read_table(source)["u"].to_pylist()
    assert [cell in (None, "", "null") for cell in found] == [cell is None for cell in source_cells(column)]
    if kind == "text views":
        assert found[:2] == ["a", "b"]
    if kind == "nanoseconds" and ending != ".parquet":
        assert found[2] == "1970-01-01 00:00:00.000000003"
    if kind == "UUIDs" and ending != ".parquet":
        assert found[1] == str(uuid.UUID(bytes=bytes([200] * 16)))
    if kind == "16 bytes" and ending == ".jsonl":
        assert base64.b64decode(found[1]) == bytes([200] * 16)
    if kind == "large numbers":
        assert [int(found[i]) for i in (0, 2)] == [WHOLE, 2**64 - 1]


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_times_that_python_lacks_are_text(tmp_path: Path, ending: str) -> None:
    """Years beyond 9999, as databases write them for no end."""
    late = pa.array([253402300800000000, 0], pa.timestamp("us"))
    days = pa.array([[2932897], [None]], pa.list_(pa.date32()))
    out = select(parquet(tmp_path, p=["a", "b"], t=["x", "y"], u=late, days=days), f"out{ending}")
    assert cells(out, "u")[0] == "10000-01-01 00:00:00.000000"
    assert "10000-01-01" in str(cells(out, "days")[0])


def source_cells(column: Any) -> list[Any]:
    """None where a column is null."""
    return [None if is_null else True for is_null in column.is_null().to_pylist()]


def test_views_are_texts_ids_and_vectors(tmp_path: Path) -> None:
    columns = {
        "p": pa.array(["a", "a", "b"], pa.string_view()),
        "t": pa.array(["red", "blue", "green"], pa.string_view()),
        "e": pa.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], pa.list_view(pa.float32())),
    }
    for options in (("--text", "t"), ("--embedding", "e")):
        assert cells(select(parquet(tmp_path, **columns), "out.jsonl", *options, k=1), "p") == ["a", "b"]


@pytest.mark.parametrize("kind", [pa.uuid(), pa.binary(16), pa.binary(), pa.binary_view()])
def test_ids_may_be_any_bytes(tmp_path: Path, kind: Any) -> None:
    ids = [bytes([200 + i // 2] * 16) for i in range(4)]
    column = pa.array(ids, kind)
    report = tmp_path / "r.json"
    out = select(parquet(tmp_path, p=column, t=["a", "b", "c", "d"]), "out.parquet", "--report", str(report))
    assert json.loads(report.read_text())["prompts"] == len(cells(out, "p")) == 2


def test_a_uuid_is_the_prompt_that_its_text_is(tmp_path: Path) -> None:
    """So that the random methods keep the same responses of it."""
    ids = [uuid.UUID(int=i // 8) for i in range(80)]
    texts = [f"word{i}" for i in range(80)]
    found = []
    for column in (pa.array([i.bytes for i in ids], pa.uuid()), pa.array([str(i) for i in ids])):
        found.append(cells(select(parquet(tmp_path, p=column, t=texts), "out.jsonl", k=3), "t"))
    assert found[0] == found[1]


TURNS = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "w"}]] * 2
SHARED = [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "w"}]] * 2
LISTS = {"t": [["red", "blue"], ["one", "two"]], "n": [[1, 2], [3, 4]], "messages": TURNS, "shared": SHARED}


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ((), {"n": 1, "messages": 2, "shared": 2}),
        (("--cut", "messages"), {"n": 1, "messages": 1, "shared": 2}),
        (("--whole", "n"), {"n": 2, "messages": 2, "shared": 2}),
        (("--whole", "n", "--cut", "shared", "--cut", "messages"), {"n": 2, "messages": 1, "shared": 1}),
    ],
)
def test_a_conversation_is_no_list_of_responses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, options: tuple[str, ...], lengths: dict[str, int]
) -> None:
    if ending == ".parquet":
        source = parquet(tmp_path, p=["a", "b"], **LISTS)
    else:
        source = jsonl(tmp_path, *map(json.dumps, pa.table({"p": ["a", "b"], **LISTS}).to_pylist()))
    out = select(source, f"out{ending}", *options)
    assert {name: len(cells(out, name)[1]) for name in lengths} == lengths
    printed = capsys.readouterr().out
    assert ("'messages' (a conversation)" in printed) == (lengths["messages"] == 2)
    assert ("'n' (--whole)" in printed) == (lengths["n"] == 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--cut", "p"), "--cut must name a list column of a nested table, got 'p' (string) of a nested table"),
        (("--whole", "x"), "has no column 'x'"),
        (("--whole", "t"), "--whole must not name a column that is cut, got 't'"),
        (("--cut", "late"), "column 'late' of --cut must hold an entry per response, got 1 for 2 responses in row 1"),
    ],
)
def test_a_list_that_cannot_be_cut_or_whole_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    source = parquet(tmp_path, p=["a", "b"], late=[[1, 2], [3]], **LISTS)
    command = ["select", str(source), "-o", str(tmp_path / "o.csv"), "--group-by", "p", "--k", "1", "--text", "t"]
    assert main([*command, *options]) == 2
    assert sentence in capsys.readouterr().err


def test_vectors_may_be_lists_of_numbers_as_texts(tmp_path: Path) -> None:
    """They had been torn into one response a number."""
    vectors = [["1", "0.5"], ["-1", "2"], ["3", "1e1"]]
    report = tmp_path / "r.json"
    options = ("--embedding", "e", "--report", str(report))
    select(parquet(tmp_path, p=["a", "a", "b"], e=vectors), "out.jsonl", *options, k=1)
    found = json.loads(report.read_text())
    assert (found["responses"], found["features"]["dimensions"]) == (3, 2)
    select(parquet(tmp_path, p=["a", "b"], e=[["[1, 2]", "(0.5 2)"], ["1, 3"]]), "out.jsonl", *options, k=1)
    found = json.loads(report.read_text())
    assert (found["responses"], found["features"]["dimensions"]) == (3, 2)
    select(parquet(tmp_path, p=["a", "b"], e=[vectors[:2], vectors[2:]]), "out.jsonl", *options, k=1)
    found = json.loads(report.read_text())
    assert (found["responses"], found["features"]["dimensions"]) == (3, 2)


@pytest.mark.parametrize(
    "cell", ["[1,,2]", "[1,2,]", "[,1]", "0.5", "", "[1,2", "1,2)", "[[1,2]]", "1_0 2", "[1, 2; 3]"]
)
def test_text_that_is_no_vector_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str) -> None:
    source = tmp_path / "in.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["p", "e"], ["a", " [1, 2] "], ["a", cell]])
    command = ["select", str(source), "-o", str(tmp_path / "o.csv"), "--group-by", "p", "--k", "1"]
    assert main([*command, "--embedding", "e"]) == 2
    assert f"column 'e' must hold vectors, got {cell!r} in row 1" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_rewards_as_large_as_float64_have_a_mean(tmp_path: Path) -> None:
    source = parquet(tmp_path, p=["a", "a", "a", "b"], t=["x", "y", "z", "w"], r=[1.7e308, -1.7e308, 1.7e308, 1.4e308])
    report, plot = str(tmp_path / "r.json"), str(tmp_path / "p.png")
    options = ("--reward", "r", "--method", "reward", "--compare", "--report", report, "--plot", plot)
    select(source, "out.parquet", *options, k=2)
    found = json.loads(Path(report).read_text())["methods"]
    assert found["reward"]["mean_reward"] == 1.6e308
    assert all(row["value"] <= 1 for row in found.values())
    assert found["reward"]["value"] > found["coverage"]["value"]


def rows_of(*sizes: int) -> Any:
    """Lists of two texts with these numbers of letters."""
    return pa.array([["x" * size, "y"] for size in sizes])


@pytest.mark.parametrize("dictionary", [False, True])
def test_batches_of_parquet_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool) -> None:
    limit = 1 << 16
    monkeypatch.setattr(reading, "BATCH_BYTES", limit)
    column = rows_of(*[10] * 3000, *[20_000] * 200, *[10] * 3000)
    numbers = list(range(len(column)))
    for size in (len(column), 2500):
        source = tmp_path / "in.parquet"
        pq.write_table(pa.table({"t": column, "i": numbers}), source, row_group_size=size, use_dictionary=dictionary)
        found, peak, largest = [], 0, 0
        for first_row, batch in reading.open_source(source).batches():
            assert first_row == len(found)
            found += batch["i"].to_pylist()
            peak, largest = max(peak, batch.nbytes), max(largest, batch.num_rows)
            assert batch["t"].to_pylist() == column.slice(first_row, batch.num_rows).to_pylist()
        assert found == numbers
        assert largest > 256
        assert peak < limit * 64  # what was decoded before a row was known to be large


@pytest.mark.parametrize(
    "error", [pa.ArrowNotImplementedError("chunked"), pa.ArrowCapacityError("full"), MemoryError()]
)
def test_a_batch_that_is_too_large_is_read_in_smaller_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source = parquet(tmp_path, t=rows_of(*[10] * 1000), i=list(range(1000)))
    whole = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, batch_size: int, **options: Any) -> Any:
        for number, batch in enumerate(whole(self, batch_size=batch_size, **options)):
            if number * batch_size >= 500 and batch_size > 8:
                raise error
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    monkeypatch.setattr(reading, "BATCH_ROWS", 128)
    batches = [batch["i"].to_pylist() for _, batch in reading.open_source(source).batches()]
    assert [number for batch in batches for number in batch] == list(range(1000))
    assert max(map(len, batches)) == 128


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_row_group_with_more_than_two_gibibytes_of_nested_text(tmp_path: Path) -> None:
    """pyarrow 26 refuses a batch of it."""
    text = "lorem ipsum " * 100_000
    chunk = pa.array([[text, text[::-1]]] * 50)
    chunks = 2**31 // chunk.nbytes + 5
    lists = pa.chunked_array([chunk] * chunks)
    count = len(lists)
    vectors = [[[1.0, float(i)], [1.0, 0.0]] for i in range(count)]
    source = tmp_path / "in.parquet"
    table = pa.table({"p": range(count), "e": vectors, "t": lists})
    pq.write_table(table, source, row_group_size=count, use_dictionary=["p"], compression="zstd")
    with pytest.raises(pa.ArrowNotImplementedError, match="chunked array"):
        list(pq.ParquetFile(source).iter_batches(batch_size=count))
    assert pq.ParquetFile(source).num_row_groups == 1
    out = select(source, "out.parquet", "--embedding", "e")
    lengths = pq.read_table(out, columns=["p", "mrt_owner"]).to_pydict()
    assert lengths["p"] == list(range(count))
    first = next(pq.ParquetFile(out).iter_batches(batch_size=1, columns=["t"]))["t"].to_pylist()
    assert re.fullmatch("(lorem ipsum |muspi merol)+ ?", first[0][0]) and len(first[0]) == 1
