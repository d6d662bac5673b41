"""Every training example runs, learns, and is short enough to be read at once."""

from __future__ import annotations

import re
import runpy
import warnings

import pytest

from tests.tools.repository import ROOT

LINES = 60
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("train_*.py"))
OURS = {"train_plain.py": "torch", "train_transformers.py": "transformers"}  # the others are of the layer of trainers
NEEDS = {
    **OURS,
    "train_lightning.py": "lightning",
    "train_accelerate.py": "accelerate",
    "train_prefix.py": "transformers",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OURS else pytest.mark.trainers) for name in sorted(NEEDS)]
)
def test_an_example_runs_and_learns(name: str) -> None:
    for library in (NEEDS[name], "transformers"):
        pytest.importorskip(library, reason="the train extra is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = runpy.run_path(str(ROOT / "examples" / name))["main"]()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) <= LINES


def test_the_lines_of_readme_stand_in_its_examples() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| (`.+) \| \[(examples/\w+\.py)\]", readme, re.MULTILINE)
    assert len(rows) >= len(NEEDS)
    for line, example in rows:
        text = (ROOT / example).read_text(encoding="utf-8")
        assert [code for code in re.findall(r"`([^`]+)`", line) if code not in text] == [], example
