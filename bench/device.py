"""Benchmarks on a GPU: `python -m bench --device`, which `make gpu` runs; and the floors that can be said without one.

Cases, inputs and checks are those of bench/<op>.py. Every competitor is timed by the device's own clock in one
interleaved run, caches flushed before each call. One that is absent, dies or answers wrongly is a row without a time
that says so, and stops nothing. Results go to bench/results/<device>.json and a plot beside it; bench/RESULTS.md holds
the floors of one device, from bytes and operations alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mrtkern.ops
from bench import OPS, device_peers, machine, report
from bench.device_time import ON_DEVICE, ON_HOST, Maker, Timer, again
from bench.harness import Competitor, Spread, WrongAnswer, interleave

ROUNDS = 51
LEAST_ROUNDS = 3
CASE_SECONDS = 10.0  # of one case's rounds, about: a slow competitor gets fewer of them
SETTLE = 0.0005  # seconds between calls: no threads of the host spin beside a GPU
DRY_CASES = 2
LONGEST_FAULT = 200  # letters
RESULTS = Path(__file__).with_name("results")
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
    """One competitor of one case: its times, or what is wrong with it."""

    op: str
    case: str
    name: str
    fault: str = ""
    microseconds: float | None = None  # of its kernels, without the pauses between launches
    quartiles: tuple[float, float] = (0.0, 0.0)
    host_microseconds: float | None = None  # until a call returns
    launches: int | None = None
    gigabytes: float | None = None  # per second
    gigaflops: float | None = None
    of_floor: float | None = None  # floor over time, on a device whose data sheet is known
    mebibytes: float | None = None  # beyond the inputs, results included
    rounds: int = 0
    answer: str = ""
    kernels: Mapping[str, tuple[float, int]] = field(default_factory=dict)  # of ours: microseconds, launches


def multiplied(op: str, case: Any) -> torch.dtype:
    """The type whose rate bounds a case."""
    problem = case.problem
    return torch.float16 if op in LATTICE else problem.product if hasattr(problem, "product") else problem.dtype


def ops() -> list[str]:
    """Operations that have a backend for GPUs."""
    found = ("triton", "cuda")
    known = [op for op in OPS if op in mrtkern.ops.OPS]
    return [op for op in known if any(importlib.util.find_spec(f"mrtkern.ops.{op}.{name}") for name in found)]


def cases(op: str) -> list[Any]:
    """The cases of an operation that are made for benchmarks, but for those of CPUs alone, and those of GPUs alone."""
    found = importlib.import_module(f"mrtkern.ops.{op}.problem").CASES
    return [case for case in found if case.tags & {"bench", "device"} and "host" not in case.tags]


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


# What is asked for


@dataclass(frozen=True)
class Options:
    """Of one run."""

    rounds: int = ROUNDS
    case: str = ""  # only cases whose name contains this
    seconds: float = math.inf  # after which no case is begun
    json: Path | None = None
    is_dry: bool = False  # on the CPU, the first cases cut to an instant: every line runs, no number means anything

    def chosen(self, op: str) -> list[Any]:
        """The cases of an operation that this run takes."""
        found = [case for case in cases(op) if "long" not in case.tags and self.case in case.name]
        return [shrunk(op, case) for case in found[:DRY_CASES]] if self.is_dry else found

    def is_complete(self, names: Sequence[str]) -> bool:
        """Whether the results may replace those that are kept."""
        whole = self.rounds >= ROUNDS and self.seconds == math.inf and not self.case and not self.is_dry
        return whole and set(names) >= set(ops())


SMALLER: dict[str, Callable[[Any], dict[str, Any]]] = {  # what takes an instant anywhere
    "similarity": lambda p: {"B": min(p.B, 4), "M": 64, "N": p.N and 64, "sizes": p.sizes and (16,) * 4},
    "facility_location": lambda p: {"T": 4 * (p.largest or 0), "B": 4},
    "neighbors": lambda p: {"M": 32, "N": p.N and 100, "K": min(p.K, 4), "D": 32},
    "cross_entropy": lambda p: {"T": 6, "V": 1000},
    "linear_cross_entropy": lambda p: {"T": 64, "D": 32, "V": 500},
}


def shrunk(op: str, case: Any) -> Any:
    """A small case of the same kind."""
    return replace(case, problem=replace(case.problem, **SMALLER[op](case.problem)))


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


def answers_of(op: Any, inputs: Any, makers: dict[str, Maker]) -> tuple[dict[str, Any], dict[str, str]]:
    """What each answers, on the CPU, and what is wrong with those that do not."""
    answers, faults = {}, {}
    for name, make in makers.items():
        try:
            answers[name] = op.answer(inputs, moved(make()(), "cpu"))
        except ModuleNotFoundError as error:
            faults[name] = f"absent: {error}"
        except Exception as error:  # noqa: BLE001  whatever a program dies of is what its row says
            faults[name] = f"fails: {brief(error)}"
    return answers, faults


def checked(op: Any, inputs: Any, answers: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What is said of each right answer, and what is wrong with the others; ours is the one they are held against."""
    if report.OURS not in answers:
        return {}, dict.fromkeys(answers, "not compared: ours has no answer")
    try:
        return dict(op.check(inputs, answers)), {}
    except WrongAnswer as error:
        if len(answers) == 1:
            return {}, {report.OURS: f"wrong: {error}"}
    said, faults = checked(op, inputs, {report.OURS: answers[report.OURS]})
    for name in answers.keys() - {report.OURS}:
        if faults.get(report.OURS) is not None:
            faults[name] = "not compared: ours has a wrong answer"
            continue
        try:
            said[name] = op.check(inputs, {key: answers[key] for key in (report.OURS, name)})[name]
        except WrongAnswer as error:
            faults[name] = f"wrong: {error}"
    return said, faults


def brief(error: Exception) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:LONGEST_FAULT]


def run_case(op: Any, case: Any, rounds: int, device: str = "cuda", timer: Timer = ON_DEVICE) -> list[Row]:
    """Check all answers, then time all competitors; one that fails is a row that says so."""
    inputs = op.make_inputs(case)
    placed = moved(inputs, device)
    ours = partial(op.prepared, placed) if hasattr(op, "prepared") else again(partial(op.ours, placed))
    makers = {report.OURS: ours, **device_peers.found(op.OP, placed)}
    answers, faults = answers_of(op, inputs, makers)
    said, wrong = checked(op, inputs, answers)
    faults |= wrong
    hosts = {name: timer.host(makers[name]) for name in makers if name in said}
    competitors = [
        Competitor(name, makers[name], clock=partial(timer.seconds, makers[name], host)) for name, host in hosts.items()
    ]
    start = time.monotonic()
    interleave(competitors, 1, settle=SETTLE)  # warm
    fitting = int(CASE_SECONDS / max(time.monotonic() - start, 1e-6))
    rounds = min(rounds, max(fitting, LEAST_ROUNDS))
    rows = [
        measured(op, case, name, seconds, timer, makers[name], hosts[name], said[name])
        for name, seconds in interleave(competitors, rounds, label=case.name, settle=SETTLE).items()
    ]
    return rows + [Row(op.OP, case.name, name, fault=fault) for name, fault in faults.items()]


def measured(
    op: Any, case: Any, name: str, seconds: list[float], timer: Timer, make: Maker, host: float, answer: str
) -> Row:
    """The row of one competitor; what only ours is worth is asked of ours alone."""
    spread, (nbytes, flops) = Spread.of(seconds), op.work(case)
    is_known = timer is ON_DEVICE and H100.name in torch.cuda.get_device_name()
    floor = H100.floor(nbytes, flops, multiplied(op.OP, case))[0] if is_known else None
    kernels = timer.kernels(make)
    return Row(
        op.OP, case.name, name,
        microseconds=spread.median * 1e6,
        quartiles=(spread.low * 1e6, spread.high * 1e6),
        host_microseconds=host * 1e6,
        launches=None if kernels is None else kernels.launches,
        gigabytes=nbytes / spread.median / 1e9,
        gigaflops=flops / spread.median / 1e9,
        of_floor=None if floor is None else floor / spread.median,
        mebibytes=timer.peak(make),
        rounds=len(seconds),
        answer=answer,
        kernels=kernels.found if kernels is not None and name == report.OURS else {},
    )  # fmt: skip


def number(value: float | None, form: str = ",.1f") -> str:
    """In words where there is none."""
    return "unknown" if value is None else f"{value:{form}}"


def table(rows: Sequence[Row]) -> str:
    """Times beside the floor; then, in a line each, what was not timed."""
    header = (
        "operation", "case", "", "kernels us", "quartiles", "host us", "launches", "GB/s", "GFLOP/s", "% of floor",
        "MiB", "answer",
    )  # fmt: skip
    lines = [
        (
            row.op, row.case, row.name, f"{row.microseconds:,.1f}", " – ".join(f"{q:,.1f}" for q in row.quartiles),
            number(row.host_microseconds), number(row.launches, "d"), number(row.gigabytes, ",.0f"),
            number(row.gigaflops, ",.0f"), number(row.of_floor, ".0%"), number(row.mebibytes), row.answer,
        )
        for row in rows if row.microseconds is not None
    ]  # fmt: skip
    faults = [f"{row.op}, {row.case}, {row.name}: {row.fault}" for row in rows if row.fault]
    return "\n".join([report.align(header, lines, is_markdown=False, numbers=slice(3, 11)), *faults])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time of every competitor over ours, case by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours = {(row.op, row.case): row.microseconds for row in rows if row.name == report.OURS and row.microseconds}
    rows = [row for row in rows if row.microseconds and (row.op, row.case) in ours]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(rows)))
    labels = [f"{row.op}, {row.case}: {row.name}" for row in rows]
    axes.barh(labels, [row.microseconds / ours[row.op, row.case] for row in rows])
    axes.set_xscale("log")
    axes.set_xlabel("time / ours")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def run_ops(names: Sequence[str], options: Options) -> Iterator[Row]:
    """The rows of all cases, one case after the other; a case that cannot be made or run is a row."""
    end = time.monotonic() + options.seconds
    device, timer = ("cpu", ON_HOST) if options.is_dry else ("cuda", ON_DEVICE)
    for op in [name for name in ops() if name in names]:
        module = importlib.import_module(f"bench.{op}")
        for case in options.chosen(op):
            if time.monotonic() > end:
                yield Row(op, case.name, report.OURS, fault="not run: no time left")
                continue
            try:
                yield from run_case(module, case, options.rounds, device, timer)
            except Exception as error:  # noqa: BLE001  the other cases are still worth their time
                yield Row(op, case.name, report.OURS, fault=f"fails: {brief(error)}")


def facts(rounds: int) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    has_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_gpu else "none",
        "torch": torch.__version__,
        "triton": machine.version("triton"),
        "cuda": torch.version.cuda,
        "commit": machine.commit(),
        "rounds": rounds,
    }


def file_of(device: str) -> Path:
    """Where the results of a device are kept."""
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def main(names: Sequence[str], options: Options) -> None:
    """Measure, print, and write: to the file that is asked for as rows come; a complete run to the device's own."""
    if not torch.cuda.is_available() and not options.is_dry:
        raise SystemExit("bench: --device needs a GPU, found none")
    if not any(options.chosen(op) for op in ops() if op in names):
        raise SystemExit(f"bench: no case of {', '.join(names)} for a GPU has {options.case!r} in its name")
    rows: list[Row] = []
    said = facts(options.rounds)
    for row in run_ops(names, options):
        rows.append(row)
        if options.json is not None:
            write(options.json, said, rows)
    print(table(rows))
    if options.json is None and options.is_complete(names):
        path = file_of(said["device"])
        write(path, said, rows)
        draw(rows, path.with_suffix(".png"))
        print(f"written: {path.name} and its plot")


def write(path: Path, said: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """The file of results, whole at every moment."""
    text = json.dumps({**said, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    beside = path.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
