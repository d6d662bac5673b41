"""The benchmark of neighbours refuses wrong answers, and its peers find what they should."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import data, neighbors, scaling, search
from mrtkern.ops.neighbors.problem import Case, Problem
from tests.tools import lists, oracle
from tests.tools.repository import ROOT

RECTANGLE = Case("40 x 200", Problem(40, 200, 5, 16, torch.float32, exclude_self=False), frozenset({"bench"}))
GRAPH = replace(RECTANGLE, problem=Problem(60, None, 5, 16, torch.float32))
CHAINS = replace(RECTANGLE, problem=Problem(60, None, 0, 2, torch.float32, kind="components"))
IN_CELLS = Case(
    "400 clusters",
    Problem(400, None, 5, 16, torch.float32, num_cells=20, num_probes=4),
    frozenset({"bench"}),
    "clusters",
)
SEARCHES = [search.torch_knn, *search.PACKAGES]


def answers_of(inputs: dict[str, Any]) -> dict[str, Any]:
    found = [*neighbors.own(inputs), *neighbors.others(inputs)]
    return {competitor.name: neighbors.answer(inputs, competitor.run()) for competitor in found}


@pytest.mark.parametrize("case", [RECTANGLE, GRAPH, CHAINS, IN_CELLS])
def test_all_competitors_are_accepted(case: Case) -> None:
    inputs = neighbors.make_inputs(case)
    answers = answers_of(inputs)
    assert neighbors.check(inputs, answers).keys() == answers.keys()


def test_approximate_answers_tell_their_recall_and_may_not_lie_about_scores() -> None:
    inputs = neighbors.make_inputs(IN_CELLS)
    result = neighbors.ours(inputs)
    mine = neighbors.answer(inputs, result)
    found = neighbors.check(inputs, {"mrtkern": mine})["mrtkern"]
    exact = neighbors.answer(inputs, neighbors.ours({**inputs, "approximate": 20}))
    shares = [len({*a} & {*b}) / 5 for a, b in zip(mine["ids"].tolist(), exact["ids"].tolist(), strict=True)]
    said = re.match(r"recall (0\.\d{3}), worst tenth ", found)
    assert said and len(shares) == 400 and abs(float(said[1]) - sum(shares) / 400) <= 0.0005 + 1e-9  # three digits
    with pytest.raises(neighbors.WrongAnswer, match="peer is off by"):
        neighbors.check(inputs, {"peer": {**mine, "scores": mine["scores"] + 1e-3}})


@pytest.mark.parametrize("knn", SEARCHES, ids=lambda knn: knn.__name__)
def test_a_search_finds_the_neighbours_without_the_row_itself(knn: search.Search) -> None:
    if not search.is_installed(knn):
        pytest.skip(f"{search.PACKAGES[knn]} is not installed")
    x = lists.normal(70, 12)
    x[40] = x[3]  # equal rows: the row itself is not always first
    ids, cosines = search.found(knn, x, None, 6, part=50)
    assert ids.shape == cosines.shape == (50, 6)
    assert bool((ids != torch.arange(50)[:, None]).all())
    assert int(ids[3, 0]) == 40 and int(ids[40, 0]) == 3
    mine = neighbors.ours({"x": x, "y": None, "k": 6, "precision": "exact"})
    # By value: of equal rows any may be found. Distances lose as many roundings again on the way to cosines.
    oracle.assert_summed(cosines.float(), mine.scores[:50], 2 * oracle.similarity_steps(12), 1.0)


@pytest.mark.parametrize(
    ("name", "reason"), [("mrtkern", "other neighbours than its reference"), ("peer", "is off by")]
)
def test_other_ids_are_refused(name: str, reason: str) -> None:
    inputs = neighbors.make_inputs(RECTANGLE)
    right = neighbors.answer(inputs, neighbors.ours(inputs))
    wrong = {**right, "ids": right["ids"].clone()}
    farthest = neighbors.ours({**inputs, "x": -inputs["x"]}).ids
    wrong["ids"][7, 4] = farthest[7, 0]
    with pytest.raises(neighbors.WrongAnswer, match=f"{name} .*{reason}|{name} {reason}"):
        neighbors.check(inputs, {"mrtkern": right, name: wrong})


def test_other_scores_and_repeated_ids_are_refused() -> None:
    inputs = neighbors.make_inputs(GRAPH)
    right = neighbors.answer(inputs, neighbors.ours(inputs))
    with pytest.raises(neighbors.WrongAnswer, match="peer is off by"):
        neighbors.check(inputs, {"mrtkern": right, "peer": {**right, "scores": right["scores"] * 1.001}})
    twice = right["ids"].clone()
    twice[:, 1] = twice[:, 0]
    with pytest.raises(neighbors.WrongAnswer, match="peer finds a row twice"):
        neighbors.check(inputs, {"mrtkern": right, "peer": {**right, "ids": twice}})


def test_other_kept_rows_are_refused() -> None:
    inputs = neighbors.make_inputs(CHAINS)
    right = neighbors.answer(inputs, neighbors.ours(inputs))
    with pytest.raises(neighbors.WrongAnswer, match="peer keeps 1 rows otherwise"):
        neighbors.check(inputs, {"mrtkern": right, "peer": {"kept": right["kept"][1:]}})
    with pytest.raises(neighbors.WrongAnswer, match="mrtkern keeps two rows of one chain"):
        neighbors.check(inputs, {"mrtkern": {"kept": torch.arange(60)}})


FAISS = """
import os, threadpoolctl
from bench import search
search.load_faiss()
blas = [part for part in threadpoolctl.threadpool_info() if "faiss" in part["filepath"]]
print(search.CORE_TYPE in os.environ, [part["architecture"] for part in blas if part["user_api"] == "blas"])
"""


@pytest.mark.skipif(not search.is_installed(search.faiss_knn), reason="faiss is not installed")
def test_faiss_has_the_kernels_of_this_processor_and_nobody_else_is_told() -> None:
    """In a process of its own: the kernels are chosen when faiss is loaded."""
    pytest.importorskip("threadpoolctl")
    done = subprocess.run([sys.executable, "-c", FAISS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False [") and "Prescott" not in done.stdout


def test_embeddings_that_are_not_there_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r"wordnet-minilm\.npy must hold embeddings, made once by `python -m bench\."
    ):
        data.embeddings()
    data.cached().parent.mkdir()
    np.save(data.cached(), np.zeros((3, 384), np.float32))
    with pytest.raises(RuntimeError, match=r"must be float32 \[117791, 384\], got float32 \[3, 384\]"):
        data.embeddings()


@pytest.mark.skipif(not data.cached().exists(), reason="python -m bench.data wordnet-minilm makes the embeddings")
def test_embeddings_are_unit_rows_and_near_where_meanings_are() -> None:
    x = torch.from_numpy(data.embeddings())
    assert bool(((x.norm(dim=1) - 1).abs() < 1e-5).all())
    mean = x[::100].mean(dim=0)
    assert 0 < float(mean.norm()) < 0.5, "texts point in all directions"


def test_time_is_drawn_for_every_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(scaling, "SIZES", (100, 200))
    monkeypatch.setattr(scaling, "ROWS", 32)
    monkeypatch.setattr(scaling, "ROUNDS", 1)
    assert neighbors.figure(tmp_path) == (
        "![Time against the number of rows, both on logarithmic axes]"
        f"({tmp_path.parent.name}/{tmp_path.name}/neighbors.png)"
    )
    assert (tmp_path / "neighbors.png").stat().st_size > 10_000
