"""Long selections: killed and taken up again, interrupted, ended early, watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mrtkern as mk
from tests.tools import process
from tests.tools.repository import ROOT

pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
from mrtkern.ops.facility_location import large
from tests.facility_location.test_large_selection_cpu import mixture, ones, room, same

N, K = 1500, 50
ENDS = torch.tensor([0, 9])
WAYS = ("table", "lists", "products")


def select(way: str, x: torch.Tensor | None = None, **options: object) -> mk.Selection:
    """Of one mixture."""
    x = mixture(N) if x is None else x
    given: dict[str, object] = {"mask": ones(len(x)), "max_memory": room(way, len(x), len(x), x.shape[1], True)}
    return mk.facility_location(x, K, backend="cpu", **(given | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of picks that the file holds, the end is the same bits."""
    file, whole = tmp_path / "picks.json", select(way)
    monkeypatch.setattr(large, "SAVE_EVERY", 0.0)
    saved = []
    write = large.checkpoint.File.write
    monkeypatch.setattr(
        large.checkpoint.File, "write", lambda self, picks: (write(self, picks), saved.append(file.read_text()))
    )
    same(select(way, checkpoint=file), whole)
    monkeypatch.undo()
    assert {len(json.loads(text)["ids"]) for text in saved} >= {1, K}
    for text in saved[:: len(saved) // 6]:
        file.write_text(text)
        same(select(way, checkpoint=str(file)), whole)
        assert json.loads(file.read_text())["ids"] == whole.ids.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["picks.json"]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"mask": ones(N) & (torch.arange(N) != 3)}, N), ({"metric": "clamped_cosine"}, N),
        ({"quality": torch.full((N,), 0.5)}, N), ({}, N - 1), ({"k": K + 1}, N), ({"stop_gain": 9.0}, N),
        ({"stop_fraction": 0.5}, N),
    ],
)  # fmt: skip
def test_a_file_of_another_call_is_refused(tmp_path: Path, options: dict[str, object], rows: int) -> None:
    file = tmp_path / "picks.json"
    select("table", checkpoint=file)
    before = file.read_bytes()
    x = mixture(N)[:rows]
    given = {"mask": ones(rows), "k": K, "checkpoint": file} | options
    with pytest.raises(ValueError, match="checkpoint must be of the same data, options, k and version"):
        mk.facility_location(x, **given)
    assert file.read_bytes() == before


def test_what_is_no_checkpoint_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"checkpoint must be a file that facility_location wrote, got '.*notes.txt'"):
        select("table", checkpoint=file)
    assert file.read_text() == "mine"
    with pytest.raises(ValueError, match=r"checkpoint must lie in a folder that can be written to, got '.*picks.json'"):
        select("table", checkpoint=tmp_path / "no folder" / "picks.json")
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match=f"checkpoint must be a file or the name of a new one, got '{path}'"):
            select("table", checkpoint=path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="checkpoint must be a file that facility_location wrote"):
        select("table", checkpoint=file)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [10**6]}, {"ids": [-1]}, {"ids": [2**40]}, {"ids": [1.5]}, {"ids": ["a"]}, {"ids": []}, {"ids": 3},
        {"ids": [4, 4], "gains": [5, 0]}, {"gains": [None]}, {"bound": None}, {"bound": 2**63},
    ],
)  # fmt: skip
def test_a_file_that_was_changed_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Before anything is read where its numbers point."""
    file = tmp_path / "picks.json"
    picks = select("table", checkpoint=file).ids
    held = json.loads(file.read_text())
    first = {"ids": [int(picks[0])], "gains": held["gains"][:1]}
    file.write_text(json.dumps(held | first | change))
    with pytest.raises(ValueError, match="checkpoint must hold picks as they were written"):
        select("table", checkpoint=file)


KILLED = """
import sys
from tests.facility_location import test_checkpoint as test
test.large.SAVE_EVERY = 0.0
test.select("products", test.mixture(test.LONG), checkpoint=sys.argv[1])
"""
LONG = 6000  # rows: a call takes seconds


def test_a_process_that_is_killed_leaves_a_file_that_can_be_taken_up(tmp_path: Path) -> None:
    whole, file = select("products", mixture(LONG)), tmp_path / "picks.json"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], cwd=ROOT)
    while not file.exists() and child.poll() is None:
        time.sleep(0.001)
    time.sleep(0.05)
    child.kill()
    child.wait()
    assert 0 < len(json.loads(file.read_text())["ids"]) <= K
    same(select("products", mixture(LONG), checkpoint=file), whole)


def call(way: str, count: int, on_interrupt: str) -> Callable[[], mk.Selection]:
    """A long call that is ready to begin."""
    torch.set_num_threads(count)
    x, memory = mixture(SLOW[way], 64), room(way, SLOW[way], SLOW[way], 64, True)
    mk.facility_location(x[:5000], 2, max_memory=room(way, 5000, 5000, 64, True))
    return lambda: mk.facility_location(x, len(x) // 2, max_memory=memory, on_interrupt=on_interrupt)


SLOW = {"table": 30_000, "lists": 60_000, "products": 200_000}


@pytest.mark.timed
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_returns_within_half_a_second(way: str, count: int) -> None:
    process.assert_ctrl_c_returns_within_half_a_second(call, way, count, "raise")


def test_ctrl_c_leaves_the_picks_so_far_if_asked() -> None:
    """At once, or they would be all of them."""
    x = mixture(9000, 64)
    memory = room("products", 9000, 9000, 64, True)

    def press(fraction: float) -> None:
        if 0 < fraction < 1:
            raise KeyboardInterrupt

    found = mk.facility_location(x, 3000, max_memory=memory, on_interrupt="prefix", progress=press)
    whole = mk.facility_location(x, len(found.ids), max_memory=memory)
    assert 0 < len(found.ids) < 3000 and torch.equal(found.ids, whole.ids) and torch.equal(found.gains, whole.gains)
    assert torch.equal(found.owner, whole.owner) and float(found.upper_bound) >= float(whole.upper_bound)
    assert float(found.upper_bound) <= 2 * len(x)  # of as many picks, not of the 3,000 that were asked for


@pytest.mark.parametrize("way", WAYS)
def test_stops_are_prefixes_of_the_whole(way: str) -> None:
    whole = select(way)
    for options, least in (
        ({"stop_gain": float(whole.gains[20])}, float(whole.gains[20])),
        ({"stop_fraction": 0.25}, 0.25 * float(whole.gains[0])),
    ):
        found = select(way, **options)
        count = int((whole.gains >= least).sum())
        assert torch.equal(found.ids, whole.ids[:count]) and torch.equal(found.gains, whole.gains[:count])
        assert float(found.value) <= float(found.upper_bound) <= float(whole.upper_bound)


@pytest.mark.parametrize("quality", [0.83, 0.37, 1.0])
def test_a_pick_that_gains_just_as_much_is_made(quality: float) -> None:
    """Gains are compared as they are reported: a rounding on the way back to steps decides nothing."""
    given = {"x": mixture(80), "k": 20, "quality": torch.full((80,), quality)}
    whole = mk.facility_location(**given)
    for count, gain in enumerate(whole.gains.tolist(), 1):
        for backend in ("cpu", "reference"):
            found = mk.facility_location(**given, stop_gain=gain, backend=backend)
            assert torch.equal(found.ids, whole.ids[: max(count, len(found.ids))]) and len(found.ids) >= count


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("scale", [1e-310, 1.0, 1e300])
def test_stops_hold_in_any_unit(backend: str, scale: float) -> None:
    given = {"similarity": torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.25, 0.0]]).double() * scale, "backend": backend}
    assert mk.facility_location(**given, k=3).ids.tolist() == [0, 1, 2]
    assert mk.facility_location(**given, k=3, stop_gain=0.5 * scale).ids.tolist() == [0]
    assert mk.facility_location(**given, k=3, stop_gain=1.7e308).ids.tolist() == []


def test_progress_never_falls_over_groups() -> None:
    heard: list[float] = []
    offsets = torch.tensor([0, 5000, 5010, 10_500])
    mk.facility_location(mixture(10_500), 20, offsets=offsets, progress=heard.append)
    assert heard == sorted(heard) and heard[-1] == 1.0


def test_progress_never_falls_and_ends() -> None:
    heard: list[float] = []
    mk.facility_location(mixture(9000, 64), 400, max_memory=room("lists", 9000, 9000, 64, True), progress=heard.append)
    assert heard == sorted(heard) and heard[-1] == 1.0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"on_interrupt": "stop"}, "on_interrupt must be one of raise, prefix, got 'stop'"),
        ({"stop_gain": -1.0}, "stop_gain must be 0 or more, got -1.0"),
        ({"stop_fraction": 1.5}, "stop_fraction must be from 0 to 1, got 1.5"),
        ({"stop_gain": float("nan")}, "stop_gain must be 0 or more, got nan"),
        ({"checkpoint": 3}, "checkpoint must be a path, got int"),
        ({"max_memory": 0}, "max_memory must be at least 1 byte, got 0"),
        ({"progress": "yes"}, "progress must be True, False or a callable, got str"),
        (
            {"stop_gain": 1.0, "offsets": torch.tensor([0, 9])},
            "stop_gain must come without offsets and picks, got offsets",
        ),
        (
            {"on_interrupt": "prefix", "offsets": torch.tensor([0, 9])},
            "on_interrupt 'prefix' must come without offsets and picks, got offsets",
        ),
        (
            {"checkpoint": "a", "picks": torch.tensor([1, 2])},
            "checkpoint must come without offsets and picks, got picks",
        ),
    ],
)
def test_bad_options_get_one_sentence(given: dict[str, object], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        mk.facility_location(torch.randn(9, 3), 2, **given)  # type: ignore[arg-type]
    assert str(caught.value) == f"facility_location: {sentence}"
    assert os.listdir(ROOT).count("a") == 0


def test_the_reference_refuses_what_it_would_not_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backend 'reference' cannot run this: writes no checkpoint"):
        mk.facility_location(torch.eye(4), 2, checkpoint=tmp_path / "picks.json", backend="reference")
    assert list(tmp_path.iterdir()) == []
