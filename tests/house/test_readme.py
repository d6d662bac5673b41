"""README says what is true: its Python runs, its table is what `make demo` prints, its files exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import warnings

import pytest

from tests.tools.repository import ROOT

README = (ROOT / "README.md").read_text()
pytest.importorskip("pyarrow", reason="the cli extra is not installed")


def test_python_snippets_run():
    pytest.importorskip("transformers", reason="the train extra is not installed")
    snippets = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(snippets) >= 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile("\n".join(snippets), "README.md", "exec"), {})


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_demo_prints_the_table(tmp_path):
    """The very command of the Makefile, with its outputs elsewhere; every processor gets the same features."""
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(r"mrtkern (select .*?\.png)", makefile.replace("\\\n", " "), re.S)
    assert found
    arguments = [word.replace("demo/", f"{tmp_path}/") for word in shlex.split(found[1])]
    done = subprocess.run(
        [sys.executable, "-m", "mrtkern", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    printed = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    shown = [line.rstrip() for line in README.split("```")[3].splitlines() if line.strip()]
    assert printed[: len(shown)] == shown
    assert (tmp_path / "kept.png").stat().st_size > 10_000
    assert (tmp_path / "kept.parquet").exists() and (tmp_path / "report.json").exists()
    share = re.search(r"no row adds anything in (\d+) %", done.stdout + done.stderr)
    assert share and f"On the sample {share[1]} % of the prompts" in README


def test_the_command_for_a_whole_table_runs(tmp_path):
    found = re.search(r"mrtkern (select .*--global.*)", README)
    assert found
    words = [word.replace("kept.", f"{tmp_path}/kept.") for word in shlex.split(found[1])]
    subprocess.run([sys.executable, "-m", "mrtkern", *words], cwd=ROOT, capture_output=True, check=True)
    assert (tmp_path / "kept.parquet").exists()
    assert (tmp_path / "kept.png").stat().st_size > 10_000
