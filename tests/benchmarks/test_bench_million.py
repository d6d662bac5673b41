"""The measurements of a million rows, at toy size: records, what is written of them, runs that were stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import million

pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where records lie for a test, whose million is 1,600 rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(million, "SIZES", (400, 1600))
    monkeypatch.setattr(million, "ROWS", 1600)
    monkeypatch.setattr(million, "EXACT_TO", 400)
    return tmp_path / "mrtkern" / "million"


def test_what_was_measured_is_written(kept: Path, tmp_path: Path) -> None:
    for kind, N in (("approximate", 400), ("approximate", 1600), ("neighbors", 1600), ("exact", 1600)):
        million.measure(kind, N)
    few, many = million.records("approximate")
    assert (few["K"], many["K"]) == (4, 16) and 0 < many["worst"] <= many["recall"] <= 1
    assert few["exact"] > few["random"] and (million.skill(few) or 0) > 0.5
    results = tmp_path / "RESULTS.md"
    million.write(results)
    text = results.read_text()
    assert "| 1,600 |" in text and "Exact, 1,600 -> 16: " in text and text.count(" yes |") + text.count(" no  |") == 8
    assert len(list(tmp_path.glob("results/*/million.png"))) == 1


def test_times_of_runs_that_were_stopped_count(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(million.mrtkern, "facility_location", interrupted)
        with pytest.raises(KeyboardInterrupt):
            million.measure("exact", 400)
    (stopped,) = (kept / "exact-400.parts").read_text().splitlines()
    assert json.loads(stopped)[0] > 0 and million.records("exact") == []
    (kept / "exact-400.parts").write_text("[1000.0, 2000.0]\n")
    million.measure("exact", 400)
    (record,) = million.records("exact")
    assert record["runs"] == 2 and 1000 < record["seconds"] < 1100 and record["cpu"] > 2000


def test_nothing_is_written_of_nothing(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"must hold records of approximate, got none"):
        million.main(["write"])
