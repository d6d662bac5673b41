"""Benchmarks for a GPU: floors, what is moved, and a whole case on the CPU by a stopwatch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import mrtkern
from bench import device, device_peers, facility_location, report, similarity
from bench.harness import WrongAnswer, stopwatch

CASE = next(case for case in similarity.cases() if case.problem.sizes is not None)
SMALL = dataclasses.replace(CASE, problem=dataclasses.replace(CASE.problem, B=20, M=160, sizes=(8,) * 20))


def test_a_floor_is_the_slower_of_moving_and_computing() -> None:
    assert device.H100.floor(335 * 10**7, 0, torch.float32) == (1e-3, "memory")
    assert device.H100.floor(0, 989 * 10**9, torch.bfloat16) == (1e-3, "compute")
    assert device.H100.floor(0, 67 * 10**9, torch.float32) == (1e-3, "compute")


def test_floors_name_every_case_of_every_operation_for_gpus_and_say_that_none_was_measured() -> None:
    text = device.floors()
    cases = [case for op in device.ops() for case in device.cases(op)]
    assert {case.name for case in cases} > {case.name for case in similarity.cases()}
    assert text.count("not measured |") == len(cases)
    assert all(f"| {case.name} " in text for case in cases)


def test_the_floors_of_results_are_todays() -> None:
    written = Path(report.__file__).with_name("RESULTS.md").read_text(encoding="utf-8")
    assert f"## {device.SECTION}\n\n{device.floors()}" in written, "run `python -m bench --floors`"


def test_what_a_result_holds_is_moved_and_the_rest_stays() -> None:
    kept = mrtkern.facility_location(torch.eye(4), 2, backend="reference")
    there = device.moved({"kept": kept, "k": 2, "parts": (torch.ones(1), None)}, "meta")
    assert there["kept"].ids.device.type == there["parts"][0].device.type == "meta"
    assert there["k"] == 2
    assert there["parts"][1] is None
    lists = mrtkern.neighbors(torch.eye(4), 2, backend="reference")
    assert torch.equal(device.moved(lists, "cpu").ids, lists.ids)


def test_a_case_is_checked_and_timed() -> None:
    rows = device.run_case(similarity, SMALL, 3, "cpu", stopwatch)
    assert [row.name for row in rows] == ["mrtkern", "torch program"]
    assert all(row.microseconds > 0 and row.answer and row.of_floor is None for row in rows)
    assert "unknown" in device.table(rows)


def test_selections_are_timed_against_programs_of_tensor_operations() -> None:
    case = dataclasses.replace(facility_location.cases()[0], B=20)
    rows = device.run_case(facility_location, case, 1, "cpu", stopwatch)
    assert [row.name for row in rows] == ["mrtkern", "torch program", "torch, norms from diagonal"]


def test_nothing_is_timed_after_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"peer": lambda: torch.zeros(SMALL.problem.pairs)}
    monkeypatch.setattr(device.device_peers, "found", lambda op, inputs: wrong)
    with pytest.raises(WrongAnswer, match="of peer are off"):
        device.run_case(similarity, SMALL, 3, "cpu", stopwatch)


def test_a_kernel_of_the_hub_is_a_peer_where_it_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert device_peers.downloaded(device_peers.TRL) is None
    repository = tmp_path / ("models--" + device_peers.TRL.replace("/", "--"))
    snapshot = repository / "snapshots" / ("0" * 40)
    for path, text in ((repository / "refs" / "main", "0" * 40), (snapshot / "README.md", "a kernel")):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    assert device_peers.downloaded(device_peers.TRL) == snapshot


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    rows = device.run_case(similarity, SMALL, 1, "cpu", stopwatch)
    device.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device needs a GPU, found none"):
        device.main(["similarity"])
