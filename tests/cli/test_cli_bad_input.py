"""Input that `mrtkern select` cannot use: status 2, one sentence that names row and column, and no file left behind."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("rich")

from mrtkern.__main__ import main  # noqa: E402
from mrtkern.cli import reading, writing  # noqa: E402
from mrtkern.cli import select as command  # noqa: E402

ROWS, BAD = 8, 5  # row 5 is the bad one, in the second of two batches
GOOD: dict[str, list[Any]] = {
    "p": ["a", "a", "a", "b", "b", "b", "b", "c"],
    "t": [f"text {i}" for i in range(ROWS)],
    "r": [0.5 * i for i in range(ROWS)],
    "e": [[1.0, float(i)] for i in range(ROWS)],
}
EMBEDDING = ("--embedding", "e", "--reward", "r")
TEXT = ("--text", "t", "--reward", "r")


def run(source: Path, *options: str, out: str = "out.parquet", group: str = "p", k: str = "2") -> int:
    """The exit status of the command."""
    return main(["select", str(source), "-o", str(source.parent / out), "--group-by", group, "--k", k, *options])


def refused(capsys: pytest.CaptureFixture[str], source: Path, *options: str, **more: str) -> str:
    """The sentence of a command that must be refused, and must leave the folder as it was."""
    before = sorted(source.parent.iterdir())
    assert run(source, *options, **more) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("mrtkern select: ")
    assert captured.out == ""
    assert sorted(source.parent.iterdir()) == before
    return captured.err


def parquet(folder: Path, **columns: Any) -> Path:
    """GOOD with other columns, as parquet."""
    pq.write_table(pa.table({**GOOD, **columns}), folder / "in.parquet", row_group_size=3)
    return folder / "in.parquet"


def jsonl(folder: Path, **columns: Any) -> Path:
    """GOOD with other columns, as JSON lines."""
    rows = [dict(zip({**GOOD, **columns}, row, strict=True)) for row in zip(*{**GOOD, **columns}.values(), strict=True)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "in.jsonl"


def with_bad(name: str, value: Any) -> list[Any]:
    """A column of GOOD with one other value."""
    return [value if i == BAD else good for i, good in enumerate(GOOD[name])]


CELLS = {
    "NaN reward": ("r", float("nan"), EMBEDDING, "column 'r' must hold finite numbers, got nan in row 5"),
    "infinite reward": ("r", float("inf"), TEXT, "column 'r' must hold finite numbers, got inf in row 5"),
    "null reward": ("r", None, EMBEDDING, "column 'r' must hold a number, got null in row 5"),
    "zero embedding": (
        "e",
        [0.0, 0.0],
        EMBEDDING,
        "column 'e' must hold vectors with a direction, got only zeros in row 5",
    ),
    "NaN embedding": ("e", [1.0, float("nan")], EMBEDDING, "column 'e' must be finite in float32, got nan in row 5"),
    "huge embedding": ("e", [1.0, 1e300], EMBEDDING, "column 'e' must be finite in float32, got 1e+300 in row 5"),
    "null embedding": ("e", None, EMBEDDING, "column 'e' must hold a list, got null in row 5"),
    "null number": ("e", [1.0, None], EMBEDDING, "column 'e' must hold numbers, got null in row 5"),
    "unequal lengths": (
        "e",
        [1.0],
        EMBEDDING,
        "column 'e' must hold vectors of one length, got 1 number in row 5 after 2",
    ),
    "empty vector": ("e", [], EMBEDDING, "column 'e' must hold vectors of one length, got 0 numbers in row 5 after 2"),
    "null prompt": ("p", None, EMBEDDING, "column 'p' must hold a prompt id, got null in row 5"),
    "empty prompt": ("p", "", EMBEDDING, "column 'p' must hold a prompt id, got an empty text in row 5"),
    "null text": ("t", None, TEXT, "column 't' must hold text, got null in row 5"),
    "blank text": ("t", " \t", TEXT, "column 't' must hold text, got an empty one in row 5"),
}


@pytest.mark.parametrize("make", [parquet, jsonl])
@pytest.mark.parametrize(("name", "value", "options", "sentence"), CELLS.values(), ids=CELLS)
def test_a_bad_cell_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[..., Path], name: str, value: Any,
    options: tuple[str, ...], sentence: str,
) -> None:  # fmt: skip
    source = make(tmp_path, **{name: with_bad(name, value)})
    assert sentence in refused(capsys, source, *options)


NESTED: dict[str, list[Any]] = {"p": ["a", "b"], "t": [["x", "y"], ["z", "u", "v"]], "r": [[1.0, 2.0], [3.0, 4.0, 5.0]]}
NESTED_CELLS = {
    "NaN reward": ({"r": [[1.0, 2.0], [3.0, 4.0, float("nan")]]}, "got nan in row 1, response 2"),
    "null list": ({"t": [["x", "y"], None]}, "column 't' must hold a list, got null in row 1"),
    "blank text": ({"t": [["x", "y"], ["z", " ", "v"]]}, "got an empty one in row 1, response 1"),
    "unequal lists": (
        {"r": [[1.0, 2.0], [3.0]]},
        "columns 't' and 'r' must hold lists of one length, got 3 and 1 in row 1",
    ),
    "one of two": ({"r": [1.0, 2.0]}, "columns must all hold one response a row or all hold a list"),
    "no response": ({"t": [[], []], "r": [[], []]}, "must hold"),
    "listed prompt": ({"p": [["a"], ["b"]]}, "column 'p' must hold one prompt id a row, got list"),
}


@pytest.mark.parametrize(("columns", "sentence"), NESTED_CELLS.values(), ids=NESTED_CELLS)
def test_a_bad_cell_of_a_list_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], sentence: str
) -> None:
    pq.write_table(pa.table({**NESTED, **columns}), tmp_path / "in.parquet")
    assert sentence in refused(capsys, tmp_path / "in.parquet", *TEXT)


TYPES = {
    "text for a reward": ({"r": ["1"] * ROWS}, EMBEDDING, "column 'r' must hold numbers, got string"),
    "number for a text": ({"t": [1] * ROWS}, TEXT, "column 't' must hold texts, got int64"),
    "number for a vector": ({"e": [1.0] * ROWS}, EMBEDDING, "column 'e' must hold vectors, got double"),
    "words for a vector": (
        {"e": ["1 2"] * 5 + ["1 x", "1 2", "1 2"]},
        EMBEDDING,
        "must hold vectors, got '1 x' in row 5",
    ),
    "structures for a prompt": ({"p": [{"a": 1}] * ROWS}, TEXT, "column 'p' must hold prompt ids as text or numbers"),
    "no reward at all": ({"r": [None] * ROWS}, TEXT, "column 'r' must hold a number, got null in row 0"),
    "a column that is added": ({"mrt_rank": [0] * ROWS}, TEXT, "must not have a column 'mrt_rank'"),
}


@pytest.mark.parametrize(("columns", "options", "sentence"), TYPES.values(), ids=TYPES)
def test_a_wrong_type_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], options: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(capsys, parquet(tmp_path, **columns), *options)


FILES: dict[str, tuple[str, bytes, str]] = {
    "empty csv": ("in.csv", b"", "must hold rows, got an empty file"),
    "empty jsonl": ("in.jsonl", b"", "must hold rows, got an empty file"),
    "empty parquet": ("in.parquet", b"", "must hold rows, got an empty file"),
    "blank jsonl": ("in.jsonl", b"\n\n", "must hold rows, got none"),
    "only a header": ("in.csv", b"p,t,r\n", "must hold rows, got none"),
    "not parquet": ("in.parquet", b"p,t,r\na,b,1\n", "cannot be read as parquet"),
    "broken line": ("in.jsonl", b'{"p":"a","t":"b","r":1}\n{"p":"a","t":\n', "row 1 of"),
    "not an object": ("in.jsonl", b'{"p":"a","t":"b","r":1}\n[1]\n', "row 1 of"),
    "two on a line": ("in.jsonl", b'{"p":"a","t":"b","r":1}\n{"p":"a"}{"p":"b"}\n', "row 1 of"),
    "over two lines": ("in.jsonl", b'{"p":"a","t":"b","r":1}\n{"p":\n"a"}\n', "row 1 of"),
    "too deep": ("in.jsonl", b'{"p":"a","t":"b","r":1}\n{"p":' + b"[" * 200_000 + b"\n", "row 1 of"),
    "two types": (
        "in.jsonl",
        b'{"p":"a","t":"b","r":1}\n{"p":"a","t":"b","r":"x"}\n',
        "'r' must have one type, got string",
    ),
    "short line": ("in.csv", b"p,t,r\na,b,1\n\na,b\n", "row 1 of"),
    "long line": ("in.csv", b"p,t,r\na,b,1\na,b,1,2\n", "in.csv must have 3 cells, got 4"),
    "open quote": ("in.csv", b'p,t,r\na,"b\nc",1\na,"b,1\na,c,2\n', "row 1 of"),
    "open quote at the end": ("in.csv", b'p,t,r\na,b,1\na,b,"1\n', "must close every quote, got the end of the file"),
    "open quote in the header": ("in.csv", b'p,t,"r\na,b,1\n', "the header of"),
    "text behind a quote": ("in.csv", b'p,t,r\na,"b"c,1\na,b,1\n', "row 0 of"),
    "quote that the next one closes": ("in.csv", b'p,t,r\na,"b,1\na,"c",2\n', "must close every quote"),
    "no number": ("in.csv", b"p,t,r\na,b,1\na,b,good\n", "column 'r' must hold numbers, got 'good' in row 1"),
    "missing number": ("in.csv", b"p,t,r\na,b,1\na,b,\n", "column 'r' must hold"),
    "twice the name": ("in.csv", b"p,t,r,r\na,b,1,2\n", "has 2 columns named 'r'"),
    "no utf-8": ("in.csv", b"p,t,r\na,b,1\na,b\xff,1\n", "row 1 of"),
    "no utf-8, then an open quote": ("in.csv", b'p,t,r\na,b\xff,1\na,"b,1\n', "in.csv must be UTF-8"),
}


@pytest.mark.parametrize(("name", "content", "sentence"), FILES.values(), ids=FILES)
def test_an_unreadable_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert sentence in refused(capsys, tmp_path / name, *TEXT)


LATE = {
    "two types": ('{"p":"a","t":"b","r":"x"}', "column 'r' must have one type, got string after int64 in row 90"),
    "a list": (
        '{"p":"a","t":"b","r":[1]}',
        "column 'r' must have one type, got list<item: int64> after int64 in row 90",
    ),
    "two in a list": (
        '{"p":"a","t":"b","r":1,"u":[1,"x"]}',
        "column 'u/[]' must have one type, got string after number in row 90",
    ),
    "two values": ('{"p":"a","t":"b","r":1,"r":2}', "Column(/r) was specified twice in row 90"),
    "too large": ('{"p":"a","t":"b","r":1e999}', "Number too big to be stored in double. in row 90"),
    "no object": ("[1]", "row 90 of"),
    "null": ('{"p":"a","t":"b","r":null}', "column 'r' must hold a number, got null in row 90"),
    "short line": ("a,b", "row 90 of"),
    "text": ("a,b,x", "column 'r' must hold numbers, got 'x' in row 90"),
    "open quote": ('a,"b,1', "row 90 of"),
}


@pytest.mark.parametrize("block", [1, 200, 1 << 23])
@pytest.mark.parametrize(("line", "sentence"), LATE.values(), ids=LATE)
def test_a_late_row_has_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    line: str, sentence: str, block: int,
) -> None:  # fmt: skip
    """However the file is cut into blocks; CSV's header needs one of more than a byte."""
    is_json = line[0] in "[{"
    monkeypatch.setattr(reading, "BLOCK_BYTES", block if is_json else max(block, 20))
    source = tmp_path / ("in.jsonl" if is_json else "in.csv")
    good = ['{"p":"a","t":"b","r":1}' if is_json else "a,b,1"] * 90
    source.write_text("\n".join([*([] if is_json else ["p,t,r"]), *good, "", line, *good]) + "\n")
    assert sentence in refused(capsys, source, *TEXT)


def test_a_late_entry_of_a_list_has_its_row_and_response(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: dict[str, list[Any]] = {"p": ["a"] * 200, "t": [["b", "c"]] * 200, "r": [[1.0, 2.0]] * 200}
    rows["r"][150] = [None, 1.0]
    pq.write_table(pa.table(rows), tmp_path / "in.parquet", row_group_size=90)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pa.table(rows).to_pylist()[150:]))
    for name, row in (("in.parquet", 150), ("in.jsonl", 0)):
        sentence = f"column 'r' must hold a number, got null in row {row}, response 0"
        assert sentence in refused(capsys, tmp_path / name, *TEXT)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_truncated_parquet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], part: float) -> None:
    content = parquet(tmp_path).read_bytes()
    (tmp_path / "in.parquet").write_bytes(content[: int(len(content) * part)])
    assert "in.parquet cannot be read as parquet" in refused(capsys, tmp_path / "in.parquet", *TEXT)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--text", "T"), "has no column 'T': its columns are p, t, r, e"),
        (("--text", "t", "--reward", "q"), "has no column 'q'"),
        (("--text", "t", "--method", "reward"), "--method reward needs --reward"),
        (("--text", "t", "--method", "max_variance"), "--method max_variance needs --reward"),
        (("--embedding", "e", "--reward", "e"), "--reward must not be the column of --embedding, got 'e'"),
        ((*TEXT, "--alpha", "-1"), "--alpha must be finite and not negative"),
        ((*TEXT, "--lam", "1.5"), "--lam must be from 0 to 1"),
        ((*TEXT, "--lam", "nan"), "--lam must be from 0 to 1"),
        ((*TEXT, "--seed", str(2**63)), f"--seed must be from -2**63 to 2**63 - 1, got {2**63}"),
        ((*TEXT, "--seed", str(-(2**63) - 1)), f"--seed must be from -2**63 to 2**63 - 1, got {-(2**63) - 1}"),
        (("--embedding", "e", "--text-model", "m"), "--text-model needs --text"),
        ((*TEXT, "--plot", "p.jpg"), "--plot must end in .png"),
    ],
)
def test_a_wrong_argument_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(capsys, parquet(tmp_path), *options)


def test_k_must_be_at_least_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in ("0", "-3"):
        assert f"--k must be at least 1, got {k}" in refused(capsys, parquet(tmp_path), *TEXT, k=k)


def test_paths_are_checked_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = parquet(tmp_path)
    monkeypatch.setattr(command, "read_columns", lambda *_: pytest.fail("the long work began"))
    (tmp_path / "folder.parquet").mkdir()
    os.symlink(source, tmp_path / "same.parquet")
    lost, one = str(tmp_path / "nowhere" / "r.json"), str(tmp_path / "one.png")
    for sentence, options, out in (
        ("output must not be the input itself", (), "in.parquet"),
        ("output must not be the input itself", (), "same.parquet"),
        ("output must end in .parquet, .jsonl, .csv", (), "out.txt"),
        ("nowhere' does not exist", (), "nowhere/out.parquet"),
        ("output must be a file, got the folder", (), "folder.parquet"),
        ("--report folder ", ("--report", lost), "out.parquet"),
        ("--plot must not be the report itself", ("--report", one, "--plot", one), "out.parquet"),
    ):
        assert sentence in refused(capsys, source, *TEXT, *options, out=out)
    absent = tmp_path / "absent.csv"
    assert refused(capsys, absent, *TEXT) == f"mrtkern select: input {str(absent)!r} does not exist\n"
    assert "input must be a file, got" in refused(capsys, tmp_path / "folder.parquet", *TEXT)
    assert "input must end in" in refused(capsys, tmp_path / "in.txt", *TEXT)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refused(capsys, parquet(tmp_path), *TEXT, out="locked/out.parquet")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), pa.ArrowInvalid("bad"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source, out = parquet(tmp_path), tmp_path / "out.parquet"
    out.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(writing.ParquetSink, "write", fail)
    assert run(source, *TEXT) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert "Traceback" not in capsys.readouterr().err
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_a_failed_picture_does_not_lose_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = pytest.importorskip("mrtkern.cli.plot")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plot, "draw", fail)
    source = parquet(tmp_path)
    assert run(source, *TEXT, "--plot", str(tmp_path / "p.png")) == 2
    assert "out.parquet is written, but what was asked beside it is not" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 5


def test_a_missing_text_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = """--text-model needs sentence-transformers, pip install "mrtkern[text]"; leave it out to use TF-IDF"""
    assert sentence in refused(capsys, parquet(tmp_path), *TEXT, "--text-model", "some-model")
