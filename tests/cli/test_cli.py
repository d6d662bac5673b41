"""`mrtkern select` end to end, on real files: what is kept, what is written beside it, and what must not change it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("rich")

from mrtkern import select_responses  # noqa: E402
from mrtkern.__main__ import main  # noqa: E402
from mrtkern.cli import reading, writing  # noqa: E402
from mrtkern.cli.columns import group_key  # noqa: E402
from mrtkern.select import METHODS  # noqa: E402
from tests.tools.repository import ROOT  # noqa: E402

SAMPLE = ROOT / "mrtkern" / "data" / "wordnet_senses.parquet"
ADDED = ("mrt_rank", "mrt_gain", "mrt_owner", "mrt_share")
D = 5  # odd, and wide enough that no two rows point the same way
SIZES = (7, 4, 1, 3, 12)  # rows of each prompt: above, at and below K = 4


def long_table(seed: int = 0) -> Any:
    """A row per response; the prompts' rows stand together."""
    rng = np.random.default_rng(seed)
    prompts = [f"prompt {p}" for p, size in enumerate(SIZES) for _ in range(size)]
    rows = len(prompts)
    return pa.table(
        {
            "prompt": prompts,
            "text": [f"answer {'abcdefghij'[i % 10]} of {prompt} {i}" for i, prompt in enumerate(prompts)],
            "score": rng.normal(size=rows).round(3),
            "vector": pa.array(list(rng.normal(size=(rows, D)).round(3).astype(np.float32)), pa.list_(pa.float32())),
            "id": np.arange(rows) + 1000,
        }
    )


def nested_table(table: Any) -> Any:
    """The same with a row per prompt."""
    frame: dict[str, list[Any]] = defaultdict(list)
    for row in table.to_pylist():
        if row["prompt"] not in frame["prompt"]:
            frame["prompt"].append(row["prompt"])
            for name in table.column_names[1:]:
                frame[name].append([])
        for name in table.column_names[1:]:
            frame[name][frame["prompt"].index(row["prompt"])].append(row[name])
    return pa.table({**frame, "tags": [["x", "y"]] * len(frame["prompt"])})


def write(table: Any, path: Path) -> Path:
    """The table as a file, in the format of its ending, made without the code under test."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=5)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())
        path.write_text(out.getvalue())
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output."""
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def select(
    table: Any, path: Path, *options: str, out: str = "out.parquet", vectors: bool = True
) -> list[dict[str, Any]]:
    """Run the command on `table` and read what it wrote."""
    target = path.with_name(out)
    columns = ["--embedding", "vector", "--reward", "score"] if vectors else []
    command = ["select", str(write(table, path)), "-o", str(target), "--group-by", "prompt", "--k", "4", *columns]
    assert main([*command, *options]) == 0
    return read(target)


def picks(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Prompt to the ids that were kept, in pick order."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        if row["mrt_rank"] is not None:
            found[row["prompt"]].append((int(row["mrt_rank"]), int(row["id"])))
    return {prompt: [number for _, number in sorted(pairs)] for prompt, pairs in found.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:select_responses. the largest rewards alone")
def test_keeps_what_the_library_keeps(tmp_path: Path, method: str) -> None:
    table = long_table()
    rows = select(table, tmp_path / "in.parquet", "--method", method, "--seed", "3", "--fill", "random")
    vectors = torch.tensor(table["vector"].to_pylist())
    offsets = torch.tensor([0, *np.cumsum(SIZES)])
    keys = torch.tensor([group_key(f"prompt {p}".encode()) for p in range(len(SIZES))])
    reward = torch.tensor(table["score"].to_pylist(), dtype=torch.float64)
    kept = select_responses(vectors, offsets, 4, method=method, reward=reward, fill="random", group_key=keys, seed=3)
    assert kept.offsets is not None
    expected = {
        f"prompt {p}": (kept.ids[kept.offsets[p] : kept.offsets[p + 1]] + 1000).tolist() for p in range(len(SIZES))
    }
    assert picks(rows) == expected
    by_row = dict(zip(kept.ids.tolist(), zip(kept.gains.tolist(), kept.share.tolist(), strict=True), strict=True))
    assert [(row["mrt_gain"], row["mrt_share"]) for row in rows] == [by_row[row["id"] - 1000] for row in rows]
    assert [row["mrt_owner"] for row in rows] == kept.owner[[row["id"] - 1000 for row in rows]].tolist()


def test_input_columns_and_row_order_are_kept(tmp_path: Path) -> None:
    table = long_table()
    rows = select(table, tmp_path / "in.parquet")
    whole = {row["id"]: row for row in table.to_pylist()}
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert [{name: row[name] for name in table.column_names} for row in rows] == [whole[row["id"]] for row in rows]
    assert set(rows[0]) == {*table.column_names, *ADDED}


def test_small_prompts_are_kept_whole_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = picks(select(long_table(), tmp_path / "in.parquet"))
    assert [len(ids) for ids in found.values()] == [min(size, 4) for size in SIZES]
    assert "2 prompts have fewer than 4 rows: kept whole" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["random", "stratified", "quality_diversity"])
def test_formats_agree(tmp_path: Path, method: str) -> None:
    expected = picks(select(long_table(), tmp_path / "in.parquet", "--method", method))
    for source in (".jsonl", ".csv"):
        for out in (".parquet", ".jsonl", ".csv"):
            rows = select(long_table(), (tmp_path / "in").with_suffix(source), "--method", method, out="other" + out)
            assert picks(rows) == expected, (source, out)


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize("method", ["random", "coverage", "additive"])
def test_nested_keeps_what_long_keeps(tmp_path: Path, ending: str, method: str) -> None:
    expected = picks(select(long_table(), tmp_path / "long.parquet", "--method", method))
    path = (tmp_path / "nested").with_suffix(ending)
    rows = select(nested_table(long_table()), path, "--method", method, out="cut" + ending)
    assert {row["prompt"]: row["id"] for row in rows} == expected
    assert all(row["mrt_rank"] == list(range(len(row["id"]))) for row in rows)
    assert all(len(row["vector"]) == len(row["text"]) == len(row["id"]) for row in rows)
    assert all(row["tags"] == ["x", "y"] for row in rows)
    first = [1000 + sum(SIZES[:p]) for p in range(len(SIZES))]
    assert all(
        [number - start for number in row["id"]] == row["mrt_owner"] for row, start in zip(rows, first, strict=True)
    )


def test_random_picks_do_not_depend_on_where_prompts_stand(tmp_path: Path) -> None:
    table = long_table()
    prompt = np.asarray(table["prompt"].to_pylist())
    expected = picks(select(table, tmp_path / "in.parquet"))
    slots = np.random.default_rng(1).permutation(prompt)  # prompts come apart; inside a prompt the order stays
    order = np.empty(len(prompt), dtype=np.int64)
    for name in np.unique(prompt):
        order[slots == name] = np.flatnonzero(prompt == name)
    rows = select(table.take(pa.array(order)), tmp_path / "apart.parquet")
    assert picks(rows) == expected
    places = {int(row): place for place, row in enumerate(order)}
    assert all(row["mrt_owner"] == places[row["id"] - 1000] for row in rows)
    half = table.filter(pa.array(np.isin(prompt, ["prompt 0", "prompt 4"])))  # a shard
    assert picks(select(half, tmp_path / "half.parquet")) == {p: expected[p] for p in ("prompt 0", "prompt 4")}


@pytest.mark.parametrize("ending", reading.ENDINGS)
def test_same_seed_same_bytes(tmp_path: Path, ending: str) -> None:
    for out in ("one", "two"):
        select(long_table(), (tmp_path / "in").with_suffix(ending), "--seed", "7", out=out + ending)
    assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()
    assert picks(select(long_table(), tmp_path / "in.parquet", "--seed", "8")) != picks(
        select(long_table(), tmp_path / "in.parquet", "--seed", "7")
    )


@pytest.mark.parametrize("nested", [False, True])
def test_all_rows_name_their_representative(tmp_path: Path, nested: bool) -> None:
    table = nested_table(long_table()) if nested else long_table()
    rows = select(table, tmp_path / "in.parquet", "--method", "coverage", "--all-rows")
    assert len(rows) == table.num_rows
    if not nested:
        kept = {i for i, row in enumerate(rows) if row["mrt_rank"] is not None}
        assert {row["mrt_owner"] for row in rows} <= kept
        assert all(row["mrt_share"] is None and row["mrt_gain"] is None for row in rows if row["mrt_rank"] is None)
        shares = [row["mrt_share"] for row in rows if row["prompt"] == "prompt 4" and row["mrt_share"] is not None]
        assert round(sum(shares), 6) == 1
    else:
        kept_of = [{i for i, rank in enumerate(row["mrt_rank"]) if rank is not None} for row in rows]
        assert all(set(row["mrt_owner"]) <= kept for row, kept in zip(rows, kept_of, strict=True))


def test_json_lines_are_copied_byte_for_byte(tmp_path: Path) -> None:
    lines = [
        '{"p": 1, "t": "red",  "when": "2020-01-01 00:00:00", "x": 1.50}',
        '{"p": 1, "t": "blue [", "only here": {"a": [1e3]}}   ',
        "",
        '{"p": 2, "t": "grün \\u00e9"}',
    ]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert main(["select", str(source), "-o", str(out), "--group-by", "p", "--k", "2", "--text", "t"]) == 0
    written = out.read_text(encoding="utf-8").splitlines()
    assert [line.split(', "mrt_rank"')[0] + "}" for line in written] == [line.strip() for line in lines if line]
    assert [json.loads(line)["mrt_owner"] for line in written] == [0, 1, 2]


def test_csv_keeps_its_text_and_finds_its_numbers(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('p,t,code,n,x\na,"one, two",007,1,1.50\na,"a\nbreak",08,,2e3\nb,"say ""hi""",09,3,-1\n')
    command = ["select", str(source), "--group-by", "p", "--k", "9", "--text", "t", "--reward", "x", "-o"]
    assert main([*command, str(tmp_path / "out.csv")]) == 0
    same = read(tmp_path / "out.csv")
    assert [{name: row[name] for name in "ptnx"} for row in same] == [
        {name: row[name] for name in "ptnx"} for row in read(source)
    ]
    assert main([*command, str(tmp_path / "out.parquet")]) == 0
    rows = read(tmp_path / "out.parquet")
    assert [(row["code"], row["n"], row["x"]) for row in rows] == [
        ("007", 1, 1.5),
        ("08", None, 2000.0),
        ("09", 3, -1.0),
    ]


def test_csv_output_holds_lists_as_json(tmp_path: Path) -> None:
    rows = select(long_table(), tmp_path / "in.parquet", out="out.csv")
    whole = {str(row["id"]): row["vector"] for row in long_table().to_pylist()}
    assert all(np.float32(json.loads(row["vector"])).tolist() == whole[row["id"]] for row in rows)


def test_json_types_may_widen_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1)  # a block per line
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"p": "a", "t": "x", "r": 1}\n{"p": "a", "t": "y", "r": 0.5}\n{"p": "b", "t": "z", "r": 2, "new": null}\n'
    )
    command = ["select", str(source), "-o", str(tmp_path / "out.parquet"), "--group-by", "p", "--k", "1", "--text", "t"]
    assert main([*command, "--reward", "r", "--method", "reward"]) == 0
    assert [(row["t"], row["r"], row["new"]) for row in read(tmp_path / "out.parquet")] == [
        ("x", 1.0, None),
        ("z", 2.0, None),
    ]


def test_streaming_in_small_batches_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = select(long_table(), tmp_path / "in.parquet")
    nested = select(nested_table(long_table()), tmp_path / "nested.parquet")
    monkeypatch.setattr(reading, "BATCH_ROWS", 2)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 300)
    monkeypatch.setattr(writing, "GROUP_ROWS", 3)
    assert select(long_table(), tmp_path / "in.parquet") == expected
    assert select(nested_table(long_table()), tmp_path / "nested.parquet") == nested
    assert picks(select(long_table(), tmp_path / "in.csv", out="small.csv")) == picks(expected)
    assert picks(select(long_table(), tmp_path / "in.jsonl", out="small.jsonl")) == picks(expected)


def test_a_prompt_may_be_spread_over_nested_rows(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "b", "a"], "text": [["red", "blue"], ["one"], ["green", "grey"]]})
    rows = select(table, tmp_path / "in.parquet", "--text", "text", "--k", "3", vectors=False)
    kept = [text for row in rows if row["prompt"] == "a" for text in row["text"]]
    owners = [owner for row in rows if row["prompt"] == "a" for owner in row["mrt_owner"]]
    assert [["red", "blue", "green", "grey"][owner] for owner in owners] == kept
    assert len(kept) == 3


@pytest.mark.parametrize("options", [(), ("--all-rows",)])
def test_lists_that_stay_whole_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "text": [["red", "blue"], ["one", "two", "six"]],
            "late": [[1, 2], [1]],
            "null": [[1, 2], None],
        }
    )
    rows = select(table, tmp_path / "in.parquet", "--text", "text", "--k", "1", *options, vectors=False)
    printed = capsys.readouterr().out
    whole = "left whole, without one entry per response: 'late' (1 for 3 responses in row 1), 'null' (null for 3 "
    assert (whole in printed, "cut to the kept entries: text" in printed) == (not options, not options)
    assert [row["late"] for row in rows] == [[1, 2], [1]]


def test_features_do_not_depend_on_the_threads_of_blas() -> None:
    threads = pytest.importorskip("threadpoolctl")
    from mrtkern.cli import features

    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(2000)])
    texts = pa.chunked_array([[" ".join(rng.choice(words, 12)) for _ in range(600)]])
    found = []
    for limit in (1, 2):
        with threads.threadpool_limits(limit):
            found.append(features.tfidf_vectors(texts).tobytes())
    assert found[0] == found[1]


FEATURES = """
import hashlib, sys
import pyarrow.parquet as pq
from threadpoolctl import threadpool_info
from mrtkern.cli import features
texts = pq.read_table(sys.argv[1])["gloss"][: int(sys.argv[2])]
digest = hashlib.sha256(features.tfidf_vectors(texts).tobytes()).hexdigest()
print(digest, *(library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"))
"""


@pytest.mark.parametrize(
    ("rows", "cores"),
    [
        (2000, ("SkylakeX", "Prescott")),  # more rows than features, the widest and the narrowest vectors
        pytest.param(9275, ("Haswell", "SkylakeX", "Prescott"), marks=pytest.mark.full),
    ],
)
def test_features_do_not_depend_on_the_processor(rows: int, cores: tuple[str, ...]) -> None:
    """OpenBLAS adds up in the order of the processor that it takes this one for."""
    found = {}
    for core in cores:
        done = subprocess.run(
            [sys.executable, "-c", FEATURES, str(SAMPLE), str(rows)],
            env={**os.environ, "OPENBLAS_CORETYPE": core}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        digest, *architectures = done.stdout.split()
        found[tuple(architectures)] = digest
    if len(found) < 2:
        pytest.skip("this BLAS has one order for all processors")
    assert len(set(found.values())) == 1


def test_the_title_is_a_line_and_counts_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"prompt": ["a"], "text": ["red"]})
    lowest = str(-(2**63))
    select(table, tmp_path / "in.parquet", "--text", "text", "--seed", lowest, vectors=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"1 row of 1 prompt, 1 kept: random, K = 4, seed {lowest}"
    assert printed[1].strip() == ""
    assert printed[2].split()[0] == "method"


def test_report_compares_all_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, plot = tmp_path / "r.json", tmp_path / "p.png"
    select(long_table(), tmp_path / "in.parquet", "--compare", "--report", str(report), "--plot", str(plot))
    found = json.loads(report.read_text())
    assert list(found["methods"]) == list(METHODS)
    assert (found["responses"], found["prompts"], found["prompts_kept_whole"]) == (sum(SIZES), len(SIZES), 2)
    best = {
        name: max(found["methods"], key=lambda method: found["methods"][method][name]) for name in ("coverage", "value")
    }
    assert best == {"coverage": "coverage", "value": "quality_diversity"}
    assert found["methods"]["reward"]["reward_top_k"] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(method in printed for method in METHODS)
    assert "…" not in printed


def test_report_measures_what_it_says(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    rows = select(long_table(), tmp_path / "in.parquet", "--method", "coverage", "--report", str(report))
    found = json.loads(report.read_text())["methods"]["coverage"]
    table, kept = long_table().to_pylist(), {row["id"] for row in rows}
    unit = {row["id"]: np.asarray(row["vector"]) / np.linalg.norm(row["vector"]) for row in table}
    near = [
        max((1 + unit[row["id"]] @ unit[other["id"]]) / 2 for other in rows if other["prompt"] == row["prompt"])
        for row in table
    ]
    spread = []
    for prompt in {row["prompt"] for row in table}:
        ids = [row["id"] for row in table if row["prompt"] == prompt and row["id"] in kept]
        pairs = [1 - unit[i] @ unit[j] for i in ids for j in ids if i != j]
        spread += [np.mean(pairs)] if pairs else []
    digits = 5  # float32 products of five terms
    assert round(found["coverage"] - float(np.mean(near)), digits) == 0
    assert round(found["diversity"] - float(np.mean(spread)), digits) == 0
    assert round(found["mean_reward"] - float(np.mean([row["score"] for row in rows])), digits) == 0


def test_without_rewards_the_methods_that_need_them_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "p.png"
    select(long_table(), tmp_path / "in.parquet", "--text", "text", "--compare", "--plot", str(plot), vectors=False)
    assert "without --reward there is no quality_diversity, additive, reward, max_variance" in capsys.readouterr().out
    assert plot.stat().st_size > 0


@pytest.mark.parametrize("prompt", ["cost $1 and $2", "提示", "a\nb", "\x01", "𝄞" * 200])
def test_any_prompt_can_be_drawn(tmp_path: Path, prompt: str) -> None:
    table = pa.table({"prompt": [prompt] * 6, "text": [f"{prompt} $x_{i}^" for i in range(6)]})
    select(table, tmp_path / "in.parquet", "--text", "text", "--plot", str(tmp_path / "p.png"), vectors=False)
    assert (tmp_path / "p.png").stat().st_size > 0


def test_texts_without_words_are_neither_like_nor_unlike_others(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"] * 4, "text": ["!!!", "red blue", "?", "green"]})
    rows = select(table, tmp_path / "in.parquet", "--text", "text", "--method", "coverage", vectors=False)
    assert len(rows) == 4


def test_the_sample_is_what_its_licence_says() -> None:
    table = pq.read_table(SAMPLE)
    assert (table.num_rows, len(set(table["word"].to_pylist()))) == (9275, 517)
    notice = SAMPLE.with_name("LICENSE.wordnet").read_text()
    assert "WordNet 3.1 Copyright 2011 by Princeton University" in notice


def test_help_shows_a_command_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["select", "--help"])
    assert stop.value.code == 0
    assert "mrtkern select mrtkern/data/wordnet_senses.parquet" in capsys.readouterr().out
