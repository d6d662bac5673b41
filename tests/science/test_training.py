"""The training runs at toy size: a run goes through, is not repeated, and its numbers are what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from bench.science import benchmark, trained, training
from tests.science.test_benchmark import prompts
from tests.tools import oracle

pytestmark = pytest.mark.trainers
TOY = training.SCALES["toy"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small benchmark."""
    folder = tmp_path_factory.mktemp("made") / "toy"
    benchmark.write(prompts(60), "wordnet", b"", folder)
    return folder


@pytest.fixture(scope="module")
def corpus(made: Path) -> training.Corpus:
    return training.Corpus(made, TOY)


def test_there_are_36_runs_and_each_has_its_name() -> None:
    names = [run.name() for run in training.runs()]
    assert len(set(names)) == len(names) == trained.ALL
    assert [run.seed for run in training.runs()] == sorted(run.seed for run in training.runs())


def test_a_data_set_holds_k_responses_of_every_prompt_the_same_in_every_wording(corpus: training.Corpus) -> None:
    rows = corpus.rows(training.Run("random", 2, "tokens", 0))
    assert [len(row["responses"]) for row in rows] == [2] * len(corpus.train)
    for first in range(0, len(rows), 4):
        assert all(row["responses"] == rows[first]["responses"] for row in rows[first : first + 4])
    other = corpus.rows(training.Run("random", 2, "tokens", 1))
    assert rows != other
    weights = [sum(row["weight"]) for row in corpus.rows(training.Run("stratified", 2, "tokens", 0))]
    oracle.assert_summed(torch.tensor(weights), torch.ones(len(weights)).double(), 4, 1.0)


def test_likelihoods_are_those_of_one_response_at_a_time(corpus: training.Corpus) -> None:
    model = training.decoder(TOY, 0).eval()
    row = corpus.test[0]
    nll, tokens = training.likelihoods(model, corpus, row)
    prompt = corpus.ids([row["prompt"]], ends=False)[0]
    for i, response in enumerate(corpus.ids(row["responses"], ends=True)):
        ids = torch.tensor([prompt + response])
        labels = torch.tensor([[-100] * len(prompt) + response])
        truth = model(input_ids=ids, labels=labels).loss.detach() * len(response)
        assert int(tokens[i]) == len(response)
        oracle.assert_summed(nll[i], truth.double(), 2000, float(truth))


def test_runs_go_on_where_they_were_and_make_a_section(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [training.Run("random", 1, "tokens", 0), training.Run("random", 4, "tokens", 0)]
    few += [training.Run("reward", 4, "tokens", 0), training.Run("random", 1, "steps", 0)]
    monkeypatch.setattr(training, "runs", lambda: few)
    arguments = [str(made), "--scale", "toy", "--runs", str(tmp_path)]
    training.main([*arguments, "--most", "2"])
    files = sorted(tmp_path.glob("toy-toy/*.json"))
    assert [file.stem for file in files] == ["random-1-tokens-0", "random-4-tokens-0"]
    before = [file.stat().st_mtime_ns for file in files]
    training.main(arguments)
    assert [file.stat().st_mtime_ns for file in files] == before
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("toy-toy/*.json")}
    assert len(results) == len(few)
    check(results)
    out = capsys.readouterr().out
    assert f"4 of {trained.ALL} runs are done" in out
    picture = trained.common.figure(*trained.SIZE)
    trained.draw(picture, trained.read(tmp_path / "toy-toy"))
    trained.common.save(picture, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def check(results: dict[str, Any]) -> None:
    """Numbers of a model that learnt a little, at equal tokens and at equal steps."""
    uniform = float(torch.tensor(float(TOY.vocabulary)).log())
    for result in results.values():
        assert 0 < result["measured"]["training"]["nll"] < uniform
        assert result["measured"]["held out"]["kl"] >= 0
        assert 0 <= result["measured"]["training"]["modes"] <= 1
    facts = {name: result["facts"] for name, result in results.items()}
    one, four, steps = (facts[f"random-{name}-0"] for name in ("1-tokens", "4-tokens", "1-steps"))
    assert 0.7 < one["tokens"] / four["tokens"] < 1.4
    assert one["steps"] > 2 * four["steps"]
    assert steps["steps"] == four["steps"]
