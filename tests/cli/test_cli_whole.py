"""`mrtkern select --global`: rows of the whole table, as facility_location keeps them, also after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

import mrtkern as mk  # noqa: E402
from mrtkern.__main__ import main  # noqa: E402
from mrtkern.cli import whole, whole_plot  # noqa: E402
from tests.tools.repository import ROOT  # noqa: E402

SMALL, LARGE = 300, 5000  # rows: one group in the cache, and more than groups may have
D, K = 16, 40


def data(rows: int) -> dict[str, Any]:
    """Rows round a few centres, of any length, and their rewards."""
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(30, D))[rng.integers(0, 30, rows)] + 0.5 * rng.normal(size=(rows, D))
    return {"id": np.arange(rows), "vector": x.astype(np.float32), "score": 100 * rng.normal(size=rows)}


def table(folder: Path, rows: int = SMALL, **changes: Any) -> Path:
    """The rows as parquet."""
    columns = data(rows) | changes
    columns["vector"] = pa.array(list(columns["vector"]), pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), folder / "in.parquet", row_group_size=1000)
    return folder / "in.parquet"


def command(source: Path, *options: str, out: str = "out.parquet", k: int = K) -> list[str]:
    """Words after `mrtkern`."""
    target = str(source.with_name(out))
    return ["select", str(source), "-o", target, "--global", "--k", str(k), "--embedding", "vector", *options]


def select(source: Path, *options: str, out: str = "out.parquet", k: int = K) -> Any:
    """The table that the command writes."""
    assert main(command(source, *options, out=out, k=k)) == 0
    return pq.read_table(source.with_name(out))


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The sentence of a command that must be refused, and must leave the folder as it was."""
    folder = Path(words[1]).parent
    before = sorted(folder.iterdir())
    assert main(words) == 2
    captured = capsys.readouterr()
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert sorted(folder.iterdir()) == before
    return captured.err.removeprefix("mrtkern select: ").rstrip("\n")


def holds(found: Any, expected: mk.Selection, rows: int) -> None:
    """The added columns are those of a Selection."""
    rank = np.asarray(found["mrt_rank"])
    assert found["id"].to_numpy()[np.argsort(rank)].tolist() == expected.ids.tolist()
    order = np.argsort(expected.ids.numpy())
    assert (found["mrt_gain"].to_numpy() == expected.gains.numpy()[order]).all()
    assert (found["mrt_share"].to_numpy() == expected.share.numpy()[order]).all()
    assert len(expected.owner) == rows
    assert (found["mrt_owner"].to_numpy() == expected.owner.numpy()[found["id"].to_numpy()]).all()


def values(method: str, score: Any) -> dict[str, torch.Tensor]:
    """Arguments of facility_location that the help promises, of --alpha 0.5 --lam 0.25."""
    q = torch.from_numpy((score - score.min()) / (score.max() - score.min()))
    if method == "quality_diversity":
        a = q.clamp(min=1e-4) ** 0.5
        return {"weight": a.clamp(min=1e-4), "quality": a}
    if method == "additive":
        return {"quality": torch.full_like(q, 0.75), "bonus": 0.25 * q}
    return {}


@pytest.mark.parametrize("rows", [SMALL, LARGE])
@pytest.mark.parametrize("method", whole.SEARCHING)
def test_keeps_what_facility_location_keeps(tmp_path: Path, method: str, rows: int) -> None:
    columns = data(rows)
    options = ("--method", method, "--reward", "score", "--alpha", "0.5", "--lam", "0.25", "--fill", "random")
    found = select(table(tmp_path, rows), *options, "--seed", "7", "--report", str(tmp_path / "r.json"))
    x = torch.from_numpy(columns["vector"])
    expected = mk.facility_location(x, K, fill="random", seed=7, **values(method, columns["score"]))
    holds(found, expected, rows)
    numbers = json.loads((tmp_path / "r.json").read_text())["methods"][method]
    assert numbers["value"] == float(expected.value)
    assert numbers["upper_bound"] == float(expected.upper_bound)
    assert numbers["skill"] == float(expected.skill)
    assert numbers["effective_k"] == int(expected.effective_k)


def test_it_ends_once_enough_is_covered_and_swaps_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.from_numpy(data(SMALL)["vector"])
    for options, given in (
        (("--stop-coverage", "0.9", "--polish", "-1"), {"stop_coverage": 0.9, "polish": True}),
        (("--polish", "2"), {"polish": 2}),
        (("--polish", "0"), {}),
    ):
        found = select(table(tmp_path), *options, "--report", str(tmp_path / "r.json"))
        expected = mk.facility_location(x, K, fill="coverage", **given)
        holds(found, expected, SMALL)
        assert json.loads((tmp_path / "r.json").read_text())["polish"] == int(options[-1])
    assert "stopped after" in capsys.readouterr().out
    for options, sentence in (
        (("--stop-coverage", "2"), "--stop-coverage must be from 0 to 1, got 2.0"),
        (("--polish", "-2"), "--polish must be at least 0 swaps, or -1, got -2"),
        (
            ("--polish", "1", "--method", "random"),
            "--polish must come with one of coverage, quality_diversity, additive",
        ),
    ):
        assert refused(capsys, command(tmp_path / "in.parquet", *options)).startswith(sentence)


@pytest.mark.parametrize("method", ["random", "reward"])
def test_picks_without_a_search_are_those_of_one_prompt(tmp_path: Path, method: str) -> None:
    columns = data(SMALL)
    x, reward = torch.from_numpy(columns["vector"]), torch.from_numpy(columns["score"])
    one = mk.select_responses(x, torch.tensor([0, SMALL]), K, method=method, reward=reward, seed=-3)
    found = select(table(tmp_path), "--method", method, "--reward", "score", "--seed", "-3")
    holds(found, one, SMALL)
    if method == "reward":
        assert set(one.ids.tolist()) == set(np.argsort(-columns["score"])[:K].tolist())


def test_the_report_measures_what_it_says(tmp_path: Path) -> None:
    columns = data(SMALL)
    options = ("--method", "additive", "--reward", "score", "--report", str(tmp_path / "r.json"))
    ids = select(table(tmp_path), *options)["id"].to_numpy()
    numbers = json.loads((tmp_path / "r.json").read_text())["methods"]["additive"]
    unit = columns["vector"].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit[ids].T
    best = np.argsort(-columns["score"])[:K]
    expected = {
        "coverage": ((1 + cosine.max(1)) / 2).mean(),
        "diversity": (1 - cosine[ids])[~np.eye(K, dtype=bool)].mean(),
        "mean_reward": columns["score"][ids].mean(),
        "reward_top_k": np.isin(ids, best).mean(),
    }
    digits = 4  # owners are found on the lattice
    assert {name: round(numbers[name] - value, digits) for name, value in expected.items()} == dict.fromkeys(
        expected, 0
    )
    assert numbers["kept"] == K


@pytest.mark.parametrize("method", ["coverage", "quality_diversity", "random"])
def test_the_approximate_graph_is_that_of_neighbors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    columns = data(LARGE)
    options = ("--approximate", "3", "--reward", "score", "--alpha", "0.5", "--method", method)
    found = select(table(tmp_path, LARGE), *options, "--report", str(tmp_path / "r.json"))
    x = torch.from_numpy(columns["vector"])
    graph = mk.neighbors(x, 64, metric="clamped_cosine", approximate=3)
    given = values(method, columns["score"])
    if method == "random":
        given = {"picks": mk.select_responses(x, torch.tensor([0, LARGE]), K).ids}
    holds(found, mk.facility_location(graph=graph, k=K, fill="coverage", **given), LARGE)
    held = json.loads((tmp_path / "r.json").read_text())["graph"]
    recall = {"recall": graph.recall, "recall_worst_tenth": graph.recall_worst_tenth}
    assert held == {"probes": 3, "neighbours": 64, **recall}
    assert graph.recall is not None and 0.2 < graph.recall < 1
    assert f"approximate: {100 * graph.recall:.1f} % of the 64 nearest were found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ending", "rows", "options"),
    [(".parquet", LARGE, ("--approximate", "2", "--plot", "p.png")), (".jsonl", SMALL, ())],
)
def test_the_same_bytes_twice(tmp_path: Path, ending: str, rows: int, options: tuple[str, ...]) -> None:
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        words = command(table(folder, rows), "--report", "r.json", *options, out=f"out{ending}")
        done = subprocess.run(
            [sys.executable, "-m", "mrtkern", *words],
            cwd=folder, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
        report = (folder / "r.json").read_text().replace(str(folder), "")
        made.append(
            (done.stdout, report, *(path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"))
        )
    assert made[0] == made[1]


def test_all_rows_name_the_kept_row_that_stands_for_them(tmp_path: Path) -> None:
    found = select(table(tmp_path), "--all-rows")
    kept = found["mrt_rank"].is_valid().to_numpy()
    assert (len(found), int(kept.sum())) == (SMALL, K)
    owner = mk.facility_location(torch.from_numpy(data(SMALL)["vector"]), K).owner
    assert found["mrt_owner"].to_pylist() == owner.tolist()
    assert kept[owner.numpy()].all()


def test_a_table_with_fewer_rows_is_kept_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = table(tmp_path)
    assert len(select(source, k=SMALL)) == SMALL
    assert "fewer than" not in capsys.readouterr().out
    assert len(select(source, k=SMALL + 1)) == SMALL
    assert f"the table has fewer than {SMALL + 1} rows: kept whole" in capsys.readouterr().out


def test_rows_that_gain_too_little_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, x = table(tmp_path), torch.from_numpy(data(SMALL)["vector"])
    gains = mk.facility_location(x, K).gains
    for options, least in ((("--stop-gain", str(float(gains[9]))), gains[9]), (("--stop-fraction", "0.02"), None)):
        least = 0.02 * gains[0] if least is None else least
        count = int((gains >= least).sum())
        assert 1 < count < K
        assert len(select(source, *options)) == count
        assert f"stopped after {count} rows: no other gains enough" in capsys.readouterr().out
    assert len(select(source, "--stop-gain", "1e6", "--plot", str(tmp_path / "p.png"))) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--method", "stratified"),
            "--method must be one of coverage, quality_diversity, additive, random, reward with --global, "
            "got stratified",
        ),
        (("--compare",), "--compare must come with --group-by, got --global"),
        (("--cut", "score"), "--cut must come with --group-by, got --global"),
        (("--method", "additive"), "--method additive needs --reward, the column of its rewards"),
        (
            ("--method", "random", "--checkpoint", "c.json"),
            "--checkpoint must come with one of coverage, quality_diversity, additive, got --method random",
        ),
        (("--approximate", "0"), "--approximate must be at least 1, got 0"),
        (("--stop-gain", "nan"), "--stop-gain must be finite and not negative, got nan"),
        (("--stop-fraction", "1.5"), "--stop-fraction must be from 0 to 1, got 1.5"),
        (("--max-memory", "much"), "--max-memory must be a size such as 4G or 512M, got 'much'"),
        (("--checkpoint", "no folder/c.json"), "--checkpoint folder 'no folder' does not exist"),
        (("--checkpoint", "."), "--checkpoint must be a file, got the folder '.'"),
        (("--k", "0"), "--k must be at least 1, got 0"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    assert refused(capsys, command(table(tmp_path), *options)) == sentence


@pytest.mark.parametrize("options", [("--group-by", "id"), ()])
def test_either_prompts_or_the_whole_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    words = command(table(tmp_path), *options)
    if not options:
        words.remove("--global")
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        "argument --group-by: not allowed with argument --global"
        if options
        else "one of the arguments --group-by --global is required"
    )


@pytest.mark.parametrize("option", [("--checkpoint", "c"), ("--approximate", "2"), ("--max-memory", "1G")])
def test_its_options_are_refused_with_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    words = command(table(tmp_path), "--group-by", "id", *option)
    words.remove("--global")
    assert refused(capsys, words) == f"{option[0]} must come with --global, got --group-by"


def test_a_bad_row_has_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = data(LARGE)
    for value, rule in ((np.nan, "be finite in float32, got nan"), (0.0, "hold vectors with a direction, got only")):
        vector = columns["vector"].copy()
        vector[4321] = value
        said = refused(capsys, command(table(tmp_path, LARGE, vector=vector)))
        assert f"column 'vector' must {rule}" in said and said.endswith("in row 4321")
    score = np.where(np.arange(LARGE) == 4999, np.inf, columns["score"])
    said = refused(capsys, command(table(tmp_path, LARGE, score=score), "--reward", "score"))
    assert said == "column 'score' must hold finite numbers, got inf in row 4999"


def test_lists_of_responses_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"vector": [[[1.0, 0.0], [0.0, 1.0]]]}), tmp_path / "in.parquet")
    assert "--global must be of a table with a response a row" in refused(capsys, command(tmp_path / "in.parquet"))


def test_memory_that_does_not_suffice_is_refused_with_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, command(table(tmp_path, LARGE), "--max-memory", "1M"))
    assert "cannot be selected from: " in said and f"got {2**20} bytes, max_memory" in said


@pytest.mark.parametrize(
    ("text", "count"), [("4G", 2**32), ("1.5k", 1536), ("512MiB", 2**29), ("7", 7), ("2TB", 2**41)]
)
def test_sizes(text: str, count: int) -> None:
    assert whole.size(text) == count


# The work stands still between two picks, once there are some. A shell's background ignores Ctrl-C.
STILL = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from mrtkern.__main__ import main
from mrtkern.ops.facility_location import large
least = large.Call._least
def still(self):
    if self.greedy.picked > 5:
        print("begun", flush=True)
        time.sleep(60)
    return least(self)
large.Call._least = still
large.SAVE_EVERY = {every}
sys.exit(main(sys.argv[1:]))
"""


def ended(words: list[str], number: signal.Signals, every: float) -> tuple[int, str]:
    """Status and stderr of a command that gets a signal while it picks; `every`: seconds between two checkpoints."""
    process = subprocess.Popen(
        [sys.executable, "-c", STILL.format(every=every), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_ended_goes_on_from_its_picks(tmp_path: Path, number: signal.Signals, status: int) -> None:
    pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    source, file = table(tmp_path, LARGE), tmp_path / "picks.json"
    select(source, out="whole.parquet", k=200)
    words = command(source, "--checkpoint", str(file), k=200)
    said = f"mrtkern select: the same command goes on from the picks in {file}\n"
    every = 0.0 if number == signal.SIGKILL else 1e9  # the others save by themselves
    assert ended(words, number, every) == (status, "" if number == signal.SIGKILL else said)
    assert not (tmp_path / "out.parquet").exists()
    held = json.loads(file.read_text())["ids"]
    assert 0 < len(held) < 200
    assert main(words) == 0
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert json.loads(file.read_text())["ids"][: len(held)] == held


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_without_a_checkpoint_leaves_nothing(tmp_path: Path, number: signal.Signals, status: int) -> None:
    pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    source = table(tmp_path, LARGE)
    before = sorted(tmp_path.iterdir())
    assert ended(command(source, k=200), number, 1e9) == (status, "")
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_of_another_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    file = tmp_path / "picks.json"
    select(table(tmp_path), "--checkpoint", str(file))
    capsys.readouterr()
    said = refused(capsys, command(table(tmp_path, SMALL + 1), "--checkpoint", str(file)))
    assert "checkpoint must be of the same data, options, k and version" in said


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (2, 1), (SMALL, SMALL), (LARGE, 600)])
def test_any_table_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, k: int) -> None:
    monkeypatch.setattr(whole_plot, "DRAWN", 2500)
    for vector in (data(rows)["vector"], np.ones((rows, 1), dtype=np.float32)):
        select(table(tmp_path, rows, vector=vector), "--plot", str(tmp_path / "p.png"), k=k)
        picture = (tmp_path / "p.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
