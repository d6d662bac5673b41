"""How the command line ends: signals leave no file behind, and output that nobody can read is one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools.repository import ROOT

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("rich")

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no device is always full here")
# The work is stopped where a temporary file exists; the output is written again and again until a signal comes.
SLOW = """
import sys, time
from mrtkern.__main__ import main
from mrtkern.cli import select
def slow(source, wanted, advance):
    print("begun", flush=True)
    time.sleep(60)
select.read_columns = slow
sys.exit(main(sys.argv[1:]))
"""


def source(folder: Path) -> Path:
    """A small table."""
    pq.write_table(pa.table({"p": ["a", "a"], "e": [[1.0, 0.0], [0.0, 1.0]]}), folder / "in.parquet")
    return folder / "in.parquet"


def command(folder: Path) -> list[str]:
    """Arguments that write one row and a report."""
    made = ["-o", "out.parquet", "--report", "r.json"]
    return ["select", str(source(folder)), *made, "--group-by", "p", "--k", "1", "--embedding", "e"]


@pytest.mark.parametrize(("number", "status", "times"), [(signal.SIGTERM, 143, 3), (signal.SIGHUP, 129, 1)])
def test_a_signal_leaves_the_folder_as_it_was(tmp_path: Path, number: signal.Signals, status: int, times: int) -> None:
    (tmp_path / "out.parquet").write_bytes(b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *command(tmp_path)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests may run under nohup
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    for _ in range(times):
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]
    assert (tmp_path / "out.parquet").read_bytes() == b"old"


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As nohup asks for."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.replace("60", "1"), *command(tmp_path)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_handlers_are_as_before_in_a_process_that_goes_on(tmp_path: Path) -> None:
    from mrtkern.__main__ import main

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    output = str(tmp_path / "out.parquet")
    assert main(["select", str(source(tmp_path)), "-o", output, "--group-by", "p", "--k", "1", "--embedding", "e"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def run(folder: Path, arguments: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell, its streams redirected."""
    script = f'"$@" {redirection}'
    words = ["sh", "-c", script, "sh", sys.executable, "-m", "mrtkern", *arguments]
    return subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )


@needs_full
@pytest.mark.parametrize("arguments", [["info"], None], ids=["info", "select"])
def test_a_full_standard_output_is_one_sentence(tmp_path: Path, arguments: list[str] | None) -> None:
    done = run(tmp_path, arguments or command(tmp_path), ">/dev/full")
    name = (arguments or ["select"])[0]
    assert done.stderr == f"mrtkern {name}: standard output cannot be written: No space left on device\n"
    assert done.returncode == 2
    assert (tmp_path / "out.parquet").exists() == (arguments is None)  # the table was not lost
    assert list(tmp_path.glob(".*.tmp")) == []


@needs_full
def test_a_full_standard_error_still_gives_the_status(tmp_path: Path) -> None:
    done = run(tmp_path, [*command(tmp_path), "--k", "0"], "2>/dev/full")
    assert (done.returncode, done.stdout) == (2, "")


def test_closed_streams_go_nowhere(tmp_path: Path) -> None:
    """Without a stand-in the first file that is opened would be standard output."""
    for redirection in (">&-", "<&- >&- 2>&-"):
        done = run(tmp_path, command(tmp_path), redirection)
        assert (done.returncode, done.stderr) == (0, "")
        assert pq.read_table(tmp_path / "out.parquet").num_rows == 1
    refused = run(tmp_path, [*command(tmp_path), "--k", "0"], "<&- >&- 2>&-")
    assert (refused.returncode, refused.stdout) == (2, "")
