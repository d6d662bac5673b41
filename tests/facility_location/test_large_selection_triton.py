"""Large sets, matrices and graphs on a device: the CPU's picks, gains, bounds, owners and shares, to the bit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mrtkern as mk
from mrtkern import _dispatch
from mrtkern.ops.facility_location import large
from mrtkern.ops.facility_location.ground import METRICS, Features, Graph, Groups, Matrix
from mrtkern.ops.facility_location.problem import Problem
from tests.facility_location.test_large_selection_cpu import mixture, same
from tests.tools import lists, on_device, oracle

pytest.importorskip("mrtkern._triton.rows", reason="needs Triton 3.4 or later")
pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
from mrtkern.ops.facility_location import triton as backend
from mrtkern.ops.facility_location.triton import costs, oracles

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
every_device = pytest.mark.parametrize("device", DEVICES)
N, K = 300, 5  # rows: one tile of the interpreter, two of a device, and a part of one more
WAYS = ("products", "lists")


def with_zeros() -> Tensor:
    """Rows without a direction among others, the last ones too: what pads a tile looks like them."""
    x = mixture(N)
    x[::6], x[-3:] = 0.0, 0.0
    return x


ROWS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: lists.normal(N, 20),
    "clusters": lambda: mixture(N),
    "copies": lambda: mixture(N)[torch.arange(N) % 23],
    "ties": lambda: torch.randint(-1, 2, (N, 3), generator=torch.Generator().manual_seed(4)).float(),
    "with zeros": with_zeros,
    "all zero": lambda: torch.zeros(N, 5),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How pairs are held: lists as soon as something is picked, or never."""
    name: str = request.param
    monkeypatch.setattr(oracles, "MOST_LIVE", 1.0 if name == "lists" else -1.0)
    return name


def on(device: str, given: dict[str, Any]) -> mk.Selection:
    """Selected there, and brought back."""
    found = mk.facility_location(**on_device.placed(given, device), backend="triton")
    fields = {name: value.cpu() for name, value in vars(found).items() if isinstance(value, Tensor)}
    assert all(value.device.type == device for value in vars(found).values() if isinstance(value, Tensor))
    return replace(found, **fields)


def as_on_the_cpu(device: str, **given: Any) -> mk.Selection:
    """What is found there, which is what the CPU finds."""
    found = on(device, given)
    same(found, mk.facility_location(**given, backend="cpu"))
    return found


@every_device
@pytest.mark.parametrize(("rows", "metric"), zip(ROWS, 3 * METRICS, strict=True))
def test_rows_are_picked_as_on_the_cpu(rows: str, metric: str, way: str, device: str) -> None:
    as_on_the_cpu(device, x=ROWS[rows](), k=K, metric=metric)


@every_device
@pytest.mark.parametrize(("live", "room", "count"), [(0.4, 10**9, 1), (0.0, 10**9, 0), (1.0, 1, 0)])
def test_lists_are_made_once_where_few_pairs_can_matter_and_they_fit(
    live: float, room: int, count: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    write = oracles.Pairs.write
    monkeypatch.setattr(oracles, "MOST_LIVE", live)
    monkeypatch.setattr(oracles.Pairs, "write", lambda *given: (made.append(1), write(*given)))
    least = backend.memory(Problem(Features, N, 24, 1, torch.float32, device, N))
    as_on_the_cpu(device, x=mixture(N), k=K, max_memory=least + room)
    assert len(made) == count


def values(size: int, seed: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


OPTIONS: dict[str, dict[str, Any]] = {
    "weight": {"weight": values(N, 1) * 3},
    "quality": {"quality": values(N, 2).where(torch.arange(N) % 4 > 0, 0.0)},
    "bonus": {"bonus": values(N, 3) * 2},
    "everything": {"weight": values(N, 1), "quality": values(N, 2), "bonus": values(N, 3)},
    "mask": {"mask": torch.arange(N) % 3 > 0},
    "start": {"start": torch.tensor([299, 7, 0])},
    "start and mask": {"start": torch.arange(66), "mask": torch.arange(N) % 2 > 0},
    "picks": {"picks": torch.tensor([5, 299, 0, 17, 298])},
    "stop_gain": {"stop_gain": 9.0},
    "stop_fraction": {"stop_fraction": 0.04},
    "targets": {"targets": mixture(70, seed=5)},
    "weighed targets": {"targets": mixture(70, seed=5), "weight": values(70, 6), "quality": values(N, 7)},
    "no picks": {"k": 0},
}


@every_device
@pytest.mark.parametrize(("option", "way"), zip(OPTIONS, 6 * WAYS + WAYS[:1], strict=True), indirect=["way"])
def test_options_are_those_of_the_cpu(option: str, way: str, device: str) -> None:
    as_on_the_cpu(device, **({"x": mixture(N), "k": K} | OPTIONS[option]))


@every_device
@pytest.mark.parametrize("fill", ["index", "coverage", "random", "none"])
def test_what_fills_up_is_what_fills_up_on_the_cpu(fill: str, device: str) -> None:
    """Five directions, of which two are worth something."""
    x = mixture(5).repeat(8, 1)
    quality = (torch.arange(40) % 5 < 2).float()
    as_on_the_cpu(device, x=x, k=9, fill=fill, quality=quality, seed=3)


@every_device
@pytest.mark.parametrize("size", [1, 2, 40])
def test_everybody_can_be_kept(size: int, device: str) -> None:
    as_on_the_cpu(device, x=mixture(size), k=size)


@every_device
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_of_features_are_those_of_the_cpu(dtype: torch.dtype, device: str) -> None:
    as_on_the_cpu(device, x=mixture(N)[:, ::2].to(dtype), k=3)


def similarities(M: int = 130) -> Tensor:
    """Of M rows with N candidates, some 0 and many equal."""
    s = values(M * N, 9).view(M, N)
    return s.where(s > 0.3, 0.0).mul(20).round().div(20)


@every_device
@pytest.mark.parametrize(
    ("option", "dtype"),
    [("weight", torch.float64), ("everything", torch.float32), ("mask", torch.bfloat16), ("start", torch.uint16),
     ("picks", torch.float32), ("stop_fraction", torch.float64)],
)  # fmt: skip
def test_matrices_are_picked_as_on_the_cpu(dtype: torch.dtype, option: str, device: str) -> None:
    s = similarities(N)
    given = {"similarity": s.to(dtype)} if dtype != torch.uint16 else {
        "similarity": (s * 1000).round().to(torch.int16).view(torch.uint16), "similarity_scale": 1234.0,
    }  # fmt: skip
    as_on_the_cpu(device, **given, k=K, **OPTIONS[option])


@every_device
@pytest.mark.parametrize("option", ["everything", "start", "picks"])
def test_graphs_are_picked_as_on_the_cpu(option: str, device: str) -> None:
    nearest, given = mk.neighbors(mixture(N), 9), {"k": K} | OPTIONS[option]
    there = mk.Neighbors(nearest.ids.to(device), nearest.scores.to(device), N)
    same(on(device, {"graph": there, **given}), mk.facility_location(graph=nearest, **given, backend="cpu"))


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.interpret),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.hardware]),  # no imitated tensor is sparse
    ],
)
@pytest.mark.parametrize(("M", "option"), [(N, "mask"), (130, "weight"), (130, "stop_fraction")])
def test_sparse_matrices_are_picked_as_on_the_cpu(M: int, option: str, device: str) -> None:
    given = {"k": K} | OPTIONS[option]
    if "weight" in given:  # of rows
        given["weight"] = given["weight"][:M]
    with warnings.catch_warnings():  # torch calls the layout a beta
        warnings.simplefilter("ignore", UserWarning)
        graph = similarities(M).to_sparse_csr()
        there = graph.to(device)
    same(on(device, {"graph": there, **given}), mk.facility_location(graph=graph, **given, backend="cpu"))


# Long calls


@every_device
def test_a_checkpoint_of_one_device_is_taken_up_by_another(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of picks that the file holds, the end is the same bits."""
    x, file = mixture(N), tmp_path / "picks.json"
    whole = mk.facility_location(x, K, backend="cpu")
    monkeypatch.setattr(large, "SAVE_EVERY", 0.0)
    saved: list[str] = []
    write = large.checkpoint.File.write
    monkeypatch.setattr(
        large.checkpoint.File, "write", lambda self, picks: (write(self, picks), saved.append(file.read_text()))
    )
    mk.facility_location(x, K, checkpoint=file, backend="cpu")
    on_the_cpu, saved[:] = list(saved), []
    file.unlink()
    same(on(device, {"x": x, "k": K, "checkpoint": file}), whole)
    assert {len(json.loads(text)["ids"]) for text in saved} >= {1, K}
    for text in on_the_cpu[1::3]:
        file.write_text(text)
        same(on(device, {"x": x, "k": K, "checkpoint": file}), whole)
    for text in saved[1::3]:
        file.write_text(text)
        same(mk.facility_location(x, K, checkpoint=file, backend="cpu"), whole)


@every_device
def test_ctrl_c_on_a_device_leaves_the_picks_so_far_if_asked(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed while a gain is computed: it comes out of the loop as it went in."""
    x, gains, calls = mixture(N), oracles.Features.gains, []

    def press(self: Any, ids: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        found: Tensor = gains(self, ids)
        return found

    monkeypatch.setattr(oracles.Features, "gains", press)
    found = on(device, {"x": x, "k": 50, "on_interrupt": "prefix"})
    whole = mk.facility_location(x, len(found.ids), backend="cpu")
    assert 0 < len(found.ids) < 50 and torch.equal(found.ids, whole.ids) and torch.equal(found.owner, whole.owner)
    assert float(found.upper_bound) >= float(whole.upper_bound)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        on(device, {"x": x, "k": 50})


@every_device
def test_progress_is_heard_of_on_a_device(device: str) -> None:
    heard: list[float] = []
    on(device, {"x": mixture(N), "k": 2, "progress": heard.append})
    assert heard == sorted(heard) and heard[-1] == 1.0


@every_device
def test_the_bound_of_more_pairs_than_are_cheap_still_holds(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from the gains before the first pick and after the last, as passes give them."""
    monkeypatch.setattr(costs, "EXACT_PAIRS", 0)
    x = mixture(N)
    same(on(device, {"x": x, "k": K}), mk.facility_location(x, K, backend="cpu"), is_bound_exact=False)


# What does not run, and what it takes


@every_device
def test_a_row_that_is_not_finite_is_named_on_a_device(device: str) -> None:
    x = mixture(N)
    x[217, 3] = torch.inf
    with pytest.raises(ValueError, match="facility_location: x must be finite, got inf in row 217"):
        on(device, {"x": x, "k": 3})
    with pytest.raises(ValueError, match="facility_location: targets must be finite, got inf in row 217"):
        on(device, {"x": mixture(50), "k": 3, "targets": x})


@every_device
def test_what_has_no_room_on_a_device_is_refused_with_the_number(device: str) -> None:
    needed = backend.memory(Problem(Features, N, 24, 1, torch.float32, device, N))
    sentence = f"facility_location: x must leave room for {needed} bytes, got 1000 bytes, max_memory"
    with pytest.raises(MemoryError, match=sentence):
        on(device, {"x": mixture(N), "k": 3, "max_memory": 1000})


@pytest.mark.interpret
@pytest.mark.parametrize("form", ["features", "matrix", "graph"])
def test_memory_of_large_selections_stays_within_its_formula(
    form: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what is looked at in parts, which here is all at once."""
    x = mixture(N)
    given, problem = {
        "features": ({"x": x}, Problem(Features, N, 24, 1, torch.float32, "cpu", N)),
        "matrix": ({"similarity": similarities(N)}, Problem(Matrix, N, 0, 1, torch.float32, "cpu", N, covered=N)),
        "graph": ({"graph": mk.neighbors(x, 9)}, Problem(Graph, N, 0, 1, torch.float32, "cpu", N, covered=N,
                                                         edges=9 * N)),
    }[form]  # fmt: skip
    listed = oracles.PAIR_BYTES * N * N if (form, way) == ("features", "lists") else 0
    peak, _ = oracle.peak_bytes(lambda: on("cpu", {**given, "k": 4}))
    assert 0 <= peak <= backend.memory(problem) + listed


def test_a_device_is_chosen_for_what_it_can_run() -> None:
    million = Problem(Features, 10**6, 384, 1, torch.bfloat16, "cuda", 10**6)
    matrix = Problem(Matrix, 50_000, 0, 1, torch.float32, "cuda", 50_000, covered=50_000)
    graph = Problem(Graph, 10**7, 0, 1, torch.float32, "cuda", 10**7, covered=10**7, edges=64 * 10**7)
    for problem in (million, matrix, graph, replace(million, options=("mask", "start", "targets"), covered=10)):
        assert _dispatch.choose("facility_location", None, problem) == "triton"
    for change, sentence in (
        ({"form": Groups}, "takes one problem at a time, got groups"),
        ({"dtype": torch.float64}, "needs float32, bfloat16 or float16, got torch.float64"),
        ({"device": "cpu"}, "needs a CUDA tensor, got one on cpu"),
        ({"capability": (7, 5)}, "needs compute capability 8.0 or later, got 7.5"),
        ({"covered": 2**31}, f"takes {backend.LIMITS}, got {2**31}"),
    ):
        assert backend.why_not(replace(million, **change)) == sentence  # type: ignore[arg-type]


def test_a_million_rows_leave_room_for_their_lists() -> None:
    """1,000,000 x 384 in bfloat16 with lists of two pairs of a thousand: within 40 GiB, half of an H100's."""
    million = Problem(Features, 10**6, 384, 1, torch.bfloat16, "cuda", 10**6)
    assert backend.memory(million) + oracles.PAIR_BYTES * 0.002 * 10**12 <= 40 << 30


def test_a_pass_is_asked_for_where_it_is_shorter() -> None:
    """Single gains read all rows for 64 candidates; a pass takes each row from the cache, and both sides of a tile."""
    for M in (10**4, 10**5, 10**6, 10**7):
        mirrored, plain = (costs.refresh_after(M, M, 384, is_mirrored) for is_mirrored in (True, False))
        assert 0 < mirrored <= plain < M
