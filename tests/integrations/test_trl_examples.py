"""The examples for TRL run as they are, and say in numbers what they did."""

from __future__ import annotations

import ast
import runpy

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
pytestmark = pytest.mark.trainers

from tests.tools.repository import ROOT  # noqa: E402


def test_grpo_keeps_half_of_the_rollouts(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "train_trl_grpo.py"), run_name="__main__")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{'loss': ")]
    logged = [found for line in printed if "kept/responses" in (found := ast.literal_eval(line))]
    assert [float(found["kept/responses"]) for found in logged[-3:]] == [4.0] * 3


def test_supervised_training_learns(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "train_trl_sft.py"), run_name="__main__")
    losses = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert len(losses) == 3 and losses[-1] < losses[0]
