"""Benchmarks for a GPU: floors, what is moved, whole cases on the CPU by a stopwatch, and on a device by its clock."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mrtkern
from bench import OPS, __main__, cross_entropy, device, device_peers, device_time, facility_location, report, similarity
from bench.device_time import ON_HOST, again

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
    rows = device.run_case(similarity, SMALL, 3, "cpu", ON_HOST)
    assert [row.name for row in rows] == ["mrtkern", "torch program"]
    assert all(row.microseconds and row.host_microseconds and row.answer and row.of_floor is None for row in rows)
    assert "unknown" in device.table(rows)


def test_selections_are_timed_against_programs_of_tensor_operations() -> None:
    case = device.shrunk("facility_location", facility_location.cases()[0])
    rows = device.run_case(facility_location, case, 1, "cpu", ON_HOST)
    assert [row.name for row in rows] == ["mrtkern", "torch program", "torch, norms from diagonal"]


def crashing() -> Any:
    raise RuntimeError("out of resources\nand a trace")


def absent() -> Any:
    return importlib.import_module("no_such_package")


PEERS = {
    "zeros": (lambda: torch.zeros(SMALL.problem.pairs), "wrong: the cosines of zeros are off"),
    "crashing": (crashing, "fails: RuntimeError: out of resources"),
    "absent": (absent, "absent: No module named 'no_such_package'"),
}


def test_what_is_absent_dies_or_is_wrong_is_a_row_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = device_peers.found
    makers = {name: again(run) for name, (run, _) in PEERS.items()}
    monkeypatch.setattr(device.device_peers, "found", lambda op, inputs: {**makers, **found(op, inputs)})
    rows = {row.name: row for row in device.run_case(similarity, SMALL, 3, "cpu", ON_HOST)}
    assert rows.keys() == {"mrtkern", "torch program", *PEERS}
    for name, (_, fault) in PEERS.items():
        assert rows[name].fault.startswith(fault) and rows[name].microseconds is None
    assert rows["mrtkern"].microseconds and rows["torch program"].microseconds
    assert all(f"{name}: " in device.table(list(rows.values())) for name in PEERS)


def test_nothing_is_timed_where_ours_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ours", lambda inputs: torch.zeros(SMALL.problem.pairs))
    rows = {row.name: row for row in device.run_case(similarity, SMALL, 3, "cpu", ON_HOST)}
    assert rows["mrtkern"].fault.startswith("wrong: the cosines of mrtkern are off")
    assert rows["torch program"].fault == "not compared: ours has a wrong answer"
    assert all(row.microseconds is None for row in rows.values())


def test_a_case_that_cannot_be_made_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "make_inputs", lambda case: crashing())
    rows = list(device.run_ops(["similarity"], device.Options(rounds=1, is_dry=True)))
    assert [row.fault for row in rows] == ["fails: RuntimeError: out of resources"] * device.DRY_CASES
    late = device.run_ops(["similarity"], device.Options(rounds=1, is_dry=True, seconds=-1.0))
    assert {row.fault for row in late} == {"not run: no time left"}


def copies_of(size: int, call: Callable[[], Any]) -> tuple[Any, int]:
    """What the call returns, and how often it copied as many numbers."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        result = call()
    copies = {"aten::clone", "aten::copy_", "aten::_to_copy"}
    found = [event for event in profiler.events() if event.name in copies and event.input_shapes]
    return result, sum(math.prod(event.input_shapes[0]) >= size for event in found)


def test_the_copy_before_a_call_in_place_is_not_timed() -> None:
    case = next(case for case in cross_entropy.cases() if case.problem.inplace)
    inputs = cross_entropy.make_inputs(device.shrunk("cross_entropy", case))
    before = inputs["x"].clone()
    run = cross_entropy.prepared(inputs)
    result, copies = copies_of(before.numel(), run)
    assert copies == 0
    assert copies_of(before.numel(), before.clone)[1] > 0
    assert torch.equal(inputs["x"], before)
    assert cross_entropy.check(inputs, {"mrtkern": cross_entropy.answer(inputs, result)}).keys() == {"mrtkern"}


def test_what_the_command_line_asks_for_reaches_the_device(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    __main__.main(
        ["similarity", "--device", "--dry", "--case", "16 x 384 float32", "--rounds", "2", "--json", str(path)]
    )
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["rounds"] == 2
    assert {row["case"] for row in found["rows"]} == {
        "10,000 x 16 x 384 float32",
        "gradient of 10,000 x 16 x 384 float32",
    }
    assert all(row["rounds"] == 2 for row in found["rows"])
    assert __main__.parse(["--device", "--quick"]).rounds == __main__.QUICK_ROUNDS
    assert __main__.parse(["--device"]).rounds == device.ROUNDS
    with pytest.raises(SystemExit, match="bench: no case of similarity for a GPU has 'nothing' in its name"):
        __main__.main(["similarity", "--device", "--dry", "--case", "nothing"])


def test_results_are_kept_of_complete_runs_alone() -> None:
    assert device.Options().is_complete(OPS)
    assert not device.Options().is_complete(["similarity"])
    for part in ({"rounds": 3}, {"case": "a"}, {"seconds": 9.0}, {"is_dry": True}):
        assert not device.Options(**part).is_complete(OPS)


TORCH_PROGRAMS = ("torch program", "torch, norms from diagonal", "torch eager", "torch naive")


@pytest.mark.gpu
@pytest.mark.parametrize("op", device.ops())
def test_every_operation_is_timed_on_a_device(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and torch's own programs, small: nothing of them strays to the CPU."""
    found = device_peers.found

    def programs(op: str, inputs: Any) -> Any:
        return {name: make for name, make in found(op, inputs).items() if name in TORCH_PROGRAMS}

    monkeypatch.setattr(device_peers, "found", programs)
    monkeypatch.setattr(device_time, "FLUSHED", 1 << 20)
    monkeypatch.setattr(device_time, "HOST_CALLS", 1)
    case = device.shrunk(op, device.cases(op)[0])
    rows = device.run_case(importlib.import_module(f"bench.{op}"), case, 1)
    assert [row.fault for row in rows] == [""] * len(rows)
    assert len(rows) > 1 and all(row.microseconds and row.host_microseconds for row in rows)


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
    rows = device.run_case(similarity, SMALL, 1, "cpu", ON_HOST)
    device.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device needs a GPU, found none"):
        device.main(["similarity"], device.Options())
