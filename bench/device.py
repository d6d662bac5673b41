"""Benchmarks on a GPU: `python -m bench --device`, which `make gpu` runs; and the floors that can be said without one.

Cases, inputs and checks are those of bench/<op>.py. Every competitor is timed by the device's own clock in one
interleaved run, caches flushed before each call; a wrong answer stops the report of its case. Results go to
bench/results/<device>.json and a plot beside it; bench/RESULTS.md holds the floors of one device, from bytes and
operations alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import OPS, device_peers, report
from bench.harness import Competitor, Spread, WrongAnswer, interleave

ROUNDS = 51
RESULTS = Path(__file__).with_name("results")
FLUSHED = 512 << 20  # bytes written before each call: more than any L2 cache
LATTICE = ("neighbors", "facility_location")  # their products are exact in float16 whatever the type of the features
SECTION = "H100: floors, not measured"


@dataclass(frozen=True)
class Device:
    """What a device can do at most: bytes per second, and operations per second by type."""

    name: str
    bandwidth: float
    rates: Mapping[torch.dtype, float]

    def floor(self, nbytes: int, flops: int, dtype: torch.dtype) -> tuple[float, str]:
        """The least seconds of a call, and what they go into."""
        times = {"memory": nbytes / self.bandwidth, "compute": flops / self.rates[dtype]}
        bound = max(times, key=times.__getitem__)
        return times[bound], bound


# NVIDIA's data sheet of the H100 SXM: dense tensor cores for 16-bit types; float32 outside them, as tf32 is not used.
H100 = Device("H100", 3.35e12, {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 67e12})


@dataclass(frozen=True)
class Row:
    """One competitor of one case."""

    op: str
    case: str
    name: str
    microseconds: float
    quartiles: tuple[float, float]
    gigabytes: float  # per second
    gigaflops: float
    of_floor: float | None  # floor over time, on a device whose data sheet is known
    answer: str


def multiplied(op: str, case: Any) -> torch.dtype:
    """The type whose rate bounds a case."""
    problem = case.problem
    return torch.float16 if op in LATTICE else problem.product if hasattr(problem, "product") else problem.dtype


def ops() -> list[str]:
    """Operations that have a backend for GPUs."""
    found = ("triton", "cuda")
    return [op for op in OPS if any(importlib.util.find_spec(f"mrtkern.ops.{op}.{name}") for name in found)]


def cases(op: str) -> list[Any]:
    """The cases of an operation that are made for benchmarks, and those for GPUs alone."""
    found = importlib.import_module(f"mrtkern.ops.{op}.problem").CASES
    return [case for case in found if case.tags & {"bench", "device"}]


# Floors, without a device


def floors() -> str:
    """The section of RESULTS.md: bytes, operations and the least time of every case, generated and not measured."""
    lines = []
    for op in ops():
        module = importlib.import_module(f"bench.{op}")
        for case in cases(op):
            nbytes, flops = module.work(case)
            seconds, bound = H100.floor(nbytes, flops, multiplied(op, case))
            size = f"{nbytes / 1e6:,.1f}", f"{flops / 1e9:,.1f}", f"{seconds * 1e6:,.1f}"
            lines.append((op, case.name, *size, bound, "not measured"))
    header = ("operation", "case", "MB", "GFLOP", "floor in us", "bound", "time")
    table = report.align(header, lines, is_markdown=True, numbers=slice(2, 5))
    text = (
        "The least time that a call can take on an H100 SXM by its data sheet: "
        f"{H100.bandwidth / 1e12:.2f} TB/s, {H100.rates[torch.bfloat16] / 1e12:.0f} TFLOP/s in 16-bit types, "
        f"{H100.rates[torch.float32] / 1e12:.0f} in float32.\nNo kernel was timed on a GPU: `make gpu` does it, and "
        "writes its own files."
    )
    return f"{text}\n\n{table}\n"


# Measuring


def moved(value: Any, device: str) -> Any:
    """The tensors of inputs or of a result on another device; other parts as they are."""
    if isinstance(value, Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad and value.is_leaf)
    if isinstance(value, Mapping):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def clock(run: Callable[[], Any]) -> float:
    """Seconds of a call by the device's clock, from a flushed cache."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSHED, dtype=torch.int8, device="cuda").zero_()
    begin.record()
    result = run()
    end.record()
    end.synchronize()
    del result
    return float(begin.elapsed_time(end)) * 1e-3


def run_case(
    op: Any, case: Any, rounds: int, device: str = "cuda", clock: Callable[[Callable[[], Any]], float] = clock
) -> list[Row]:
    """Check all answers, then time all competitors."""
    inputs = op.make_inputs(case)
    placed = moved(inputs, device)
    runs = {report.OURS: partial(op.ours, placed), **device_peers.found(op.OP, placed)}
    answers = {name: op.answer(inputs, moved(run(), "cpu")) for name, run in runs.items()}
    checked = op.check(inputs, answers)
    competitors = [Competitor(name, run, clock=partial(clock, run)) for name, run in runs.items()]
    interleave(competitors, 2)  # warm
    nbytes, flops = op.work(case)
    is_known = device == "cuda" and H100.name in torch.cuda.get_device_name()
    floor = H100.floor(nbytes, flops, multiplied(op.OP, case))[0] if is_known else None
    rows = []
    for name, seconds in interleave(competitors, rounds, label=case.name).items():
        spread = Spread.of(seconds)
        rates = nbytes / spread.median / 1e9, flops / spread.median / 1e9
        share = None if floor is None else floor / spread.median
        quartiles = spread.low * 1e6, spread.high * 1e6
        rows.append(Row(op.OP, case.name, name, spread.median * 1e6, quartiles, *rates, share, checked.get(name, "")))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The roofline table."""
    header = ("operation", "case", "", "median us", "quartiles", "GB/s", "GFLOP/s", "% of floor", "answer")
    lines = [
        (
            row.op, row.case, row.name, f"{row.microseconds:,.1f}", " – ".join(f"{q:,.1f}" for q in row.quartiles),
            f"{row.gigabytes:,.0f}", f"{row.gigaflops:,.0f}",
            "unknown" if row.of_floor is None else f"{row.of_floor:.0%}", row.answer,
        )
        for row in rows
    ]  # fmt: skip
    return report.align(header, lines, is_markdown=False, numbers=slice(3, 8))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time of every competitor over ours, case by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours = {row.case: row.microseconds for row in rows if row.name == report.OURS}
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(rows)))
    labels = [f"{row.op}, {row.case}: {row.name}" for row in rows]
    axes.barh(labels, [row.microseconds / ours[row.case] for row in rows])
    axes.set_xscale("log")
    axes.set_xlabel("time / ours")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(names: Sequence[str], rounds: int = ROUNDS) -> None:
    """Measure all cases that fit, print them, and write json and plot."""
    if not torch.cuda.is_available():
        raise SystemExit("bench: --device needs a GPU, found none")
    rows: list[Row] = []
    for op in [name for name in ops() if name in names]:
        module = importlib.import_module(f"bench.{op}")
        for case in [case for case in cases(op) if "long" not in case.tags]:
            try:
                rows += run_case(module, case, rounds)
            except WrongAnswer as error:
                raise SystemExit(f"bench: {op}, {case.name}: {error}") from None
    print(table(rows))
    device = torch.cuda.get_device_name()
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower())}.json"
    facts = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda, "rounds": rounds}
    path.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")
    draw(rows, path.with_suffix(".png"))
    print(f"written: {path.name} and its plot")
