"""TRL's trainers on two ranks of gloo: one batch and its split over ranks give the same parameters and losses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the train extra is not installed")
pytestmark = pytest.mark.trainers

from tests.integrations.test_trl_grpo import chosen_by_reward  # noqa: E402
from tests.tools import oracle, process, rollouts, supervised, two_ranks  # noqa: E402
from tests.tools.repository import ROOT  # noqa: E402


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes made of everything, started once."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.tools.two_ranks", str(folder)]
    started = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **ranks, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [rank.wait(process.LONGEST) for rank in started] == [0, 0]
    finally:
        for rank in started:
            rank.kill()
    made: dict[str, Any] = torch.load(folder / "found.pt")
    return made


@pytest.mark.parametrize("name", two_ranks.GRPO)
def test_rollouts_on_two_ranks_train_as_on_one(name: str, found: dict[str, Any]) -> None:
    keep = two_ranks.GRPO[name][1].get("keep", rollouts.N)
    P = 3 if name == "prompts over ranks" else 4
    expected = rollouts.truth("prompt", [chosen_by_reward(p, keep) for p in range(12)], P=P)
    assert rollouts.difference(found[name], expected) <= oracle.SPLIT


@pytest.mark.parametrize("name", two_ranks.SFT)
def test_responses_on_two_ranks_train_as_on_one(name: str, found: dict[str, Any]) -> None:
    given = [row for row in two_ranks.SFT[name][0] if set(row["labels"]) != {supervised.IGNORE}]
    assert rollouts.difference(found[name], supervised.truth([given] * 3, "prompt")) <= oracle.SPLIT


@pytest.mark.parametrize("name", two_ranks.SFT)
def test_evaluation_on_two_ranks_counts_every_row_once(name: str, found: dict[str, Any]) -> None:
    expected = float(supervised.true_loss(rollouts.tiny(), two_ranks.EVALUATED, "prompt").detach())
    assert found[f"eval {name}"] == pytest.approx(expected, rel=oracle.LOSS)


@pytest.mark.parametrize("name", two_ranks.SFT)
def test_a_model_that_no_rank_would_share_gradients_of_is_refused(name: str, found: dict[str, Any]) -> None:
    said = "ranks must share gradients, got a model that evaluate() prepared before train()"
    assert found[f"evaluated {name}"].endswith(said)
