"""`mrtkern dedup`: the rows that the library keeps, in files of every kind, and what marks them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pcsv = pytest.importorskip("pyarrow.csv")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

import mrtkern as mk  # noqa: E402
from mrtkern.__main__ import main  # noqa: E402
from mrtkern.cli import dedup  # noqa: E402
from tests.tools.repository import ROOT  # noqa: E402

ROWS, D, THRESHOLD = 200, 6, 0.95
SAMPLE = ROOT / "mrtkern" / "data" / "wordnet_senses.parquet"


def data() -> dict[str, Any]:
    """Rows near few centres, of several prompts that are mixed, and their rewards, some of which are equal."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(50, D))[rng.integers(0, 50, ROWS)] + 0.15 * rng.normal(size=(ROWS, D))
    return {"id": np.arange(ROWS), "prompt": rng.integers(0, 7, ROWS), "vector": x.astype(np.float32),
            "score": rng.integers(0, 4, ROWS).astype(float)}  # fmt: skip


def table(folder: Path, **changes: Any) -> Path:
    columns = data() | changes
    columns["vector"] = pa.array(list(columns["vector"]), pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), folder / "in.parquet", row_group_size=64)
    return folder / "in.parquet"


def run(source: Path, *options: str, out: str = "out.parquet") -> Any:
    """The table that the command writes."""
    target = source.with_name(out)
    assert main(["dedup", str(source), "-o", str(target), "--embedding", "vector", *options]) == 0
    return pq.read_table(target) if target.suffix == ".parquet" else target


def chains(found: Any) -> dict[int, set[int]]:
    """Rows by the row that stands for them, of an output with all rows."""
    groups: dict[int, set[int]] = {}
    for row, owner in zip(found["id"].to_pylist(), found["mrt_owner"].to_pylist(), strict=True):
        groups.setdefault(owner, set()).add(row)
    return groups


def test_the_first_of_every_chain_is_kept(tmp_path: Path) -> None:
    found = run(table(tmp_path), "--threshold", str(THRESHOLD))
    expected = mk.deduplicate(torch.from_numpy(data()["vector"]), THRESHOLD, return_groups=True)
    assert found["id"].to_pylist() == expected.ids.tolist() == found["mrt_owner"].to_pylist()
    assert found["mrt_size"].to_pylist() == expected.sizes.tolist()
    assert found.column_names == ["id", "prompt", "vector", "score", "mrt_owner", "mrt_size"]
    assert 20 < len(found) < 150  # there was something to find


def test_all_rows_name_the_row_that_stands_for_them(tmp_path: Path) -> None:
    found = run(table(tmp_path), "--threshold", str(THRESHOLD), "--all-rows")
    expected = mk.deduplicate(torch.from_numpy(data()["vector"]), THRESHOLD, return_groups=True)
    assert found["id"].to_pylist() == list(range(ROWS))
    assert found["mrt_owner"].to_pylist() == expected.representative.tolist()
    assert all(size == len(chains(found)[owner]) for owner, size in
               zip(found["mrt_owner"].to_pylist(), found["mrt_size"].to_pylist(), strict=True))  # fmt: skip


def test_rows_of_different_prompts_are_not_linked(tmp_path: Path) -> None:
    found = run(table(tmp_path), "--threshold", str(THRESHOLD), "--group-by", "prompt", "--all-rows")
    given = data()
    prompt, x = given["prompt"], torch.from_numpy(given["vector"])
    for p in range(7):
        rows = np.flatnonzero(prompt == p)
        expected = mk.deduplicate(x[rows], THRESHOLD, return_groups=True)
        owners = np.asarray(found["mrt_owner"])[rows]
        assert owners.tolist() == rows[expected.representative.numpy()].tolist()
    assert len(chains(found)) > len(mk.deduplicate(x, THRESHOLD))


def test_exactly_so_many_rows_are_kept(tmp_path: Path) -> None:
    found = run(table(tmp_path), "--rows", "31")
    assert found["id"].to_pylist() == mk.deduplicate(torch.from_numpy(data()["vector"]), num_rows=31).tolist()


@pytest.mark.parametrize("options", [(), ("--group-by", "prompt")], ids=["whole", "prompts"])
def test_the_best_of_every_chain_is_kept_the_first_of_equals(tmp_path: Path, options: tuple[str, ...]) -> None:
    source, score = table(tmp_path), data()["score"]
    asked = ("--threshold", str(THRESHOLD), "--all-rows", *options)
    first, found = run(source, *asked), run(source, *asked, "--keep", "best", "--reward", "score")
    assert sorted(map(sorted, chains(found).values())) == sorted(map(sorted, chains(first).values()))
    for owner, rows in chains(found).items():
        assert owner == min(rows, key=lambda row: (-score[row], row))
    assert set(chains(found)) != set(chains(first))


def test_the_medoid_of_every_chain_is_the_most_similar_to_all(tmp_path: Path) -> None:
    found = run(table(tmp_path), "--threshold", str(THRESHOLD), "--keep", "medoid", "--all-rows")
    x = data()["vector"].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for owner, rows in chains(found).items():
        total = {row: float(x[row] @ x[sorted(rows)].sum(axis=0)) for row in rows}
        assert total[owner] >= max(total.values()) - len(rows) * D * np.finfo(np.float64).eps


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_tables_of_every_kind_keep_the_same_rows(tmp_path: Path, ending: str) -> None:
    source = table(tmp_path)
    expected = run(source, "--threshold", str(THRESHOLD))["id"].to_pylist()
    target = run(source, "--threshold", str(THRESHOLD), out=f"out{ending}")
    if ending == ".jsonl":
        assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == expected
    else:
        assert pcsv.read_csv(target)["id"].to_pylist() == expected
    again = target.with_name(f"again{ending}")
    words = ["dedup", str(target), "-o", str(again), "--embedding", "vector", "--threshold", str(THRESHOLD)]
    assert main(words) == 2  # its columns are there already


def test_texts_are_compared_and_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.json"
    words = ["dedup", str(SAMPLE), "-o", str(tmp_path / "out.parquet"), "--text", "gloss", "--group-by", "word",
             "--threshold", "0.6", "--report", str(report)]  # fmt: skip
    assert main(words) == 0
    kept = len(pq.read_table(tmp_path / "out.parquet"))
    held, printed = json.loads(report.read_text()), capsys.readouterr().out
    assert held["rows"] == 9275 and held["kept"] == kept < 9275 and held["largest_chain"] >= 2
    several = f"{held['chains_of_several']} chains of several"
    assert printed.startswith(f"9,275 rows, {kept:,} kept (threshold 0.6): {several}")


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    source, made = table(tmp_path), []
    for name in ("a.parquet", "b.parquet"):
        words = [sys.executable, "-m", "mrtkern", "dedup", str(source), "-o", str(tmp_path / name), "--rows", "50",
                 "--embedding", "vector", "--keep", "medoid"]  # fmt: skip
        subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--threshold", "1.5"], "--threshold must be from -1 to 1, got 1.5"),
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--rows", "900"], "num_rows must be from 1 to the 200 rows of x, got 900"),
        (["--rows", "5", "--group-by", "prompt"], "--rows must come without --group-by, got both"),
        (["--threshold", "0.9", "--keep", "best"], "--keep best and --reward need each other"),
        (["--threshold", "0.9", "--reward", "score"], "--keep best and --reward need each other"),
        (["--threshold", "0.9", "--keep", "best", "--reward", "stars"], "has no column 'stars'"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = table(tmp_path)
    words = ["dedup", str(source), "-o", str(tmp_path / "out.parquet"), "--embedding", "vector", *options]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("mrtkern dedup: ") and sentence in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_nan_lists_and_its_own_input_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = data()["vector"]
    x[33, 2] = np.nan
    source = table(tmp_path, vector=x)
    for target in (tmp_path / "out.parquet", source):
        assert main(["dedup", str(source), "-o", str(target), "--embedding", "vector", "--threshold", "0.9"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "row 33" in first and "output must not be the input itself" in second
    nested = tmp_path / "nested.parquet"
    pq.write_table(pa.table({"text": [["a", "b"], ["c"]]}), nested)
    assert main(["dedup", str(nested), "-o", str(tmp_path / "o.parquet"), "--text", "text", "--threshold", "0.9"]) == 2
    assert "takes a table with a response a row, got lists of responses" in capsys.readouterr().err


def test_the_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dedup", "--help"])
    said = capsys.readouterr().out
    assert "mrtkern dedup mrtkern/data/wordnet_senses.parquet" in said and all(name in said for name in dedup.KEEPS)
