"""A million candidates: what selection from so many takes, measured once each, since it takes minutes to hours.

    python -m bench.million approximate    graphs of approximate neighbours, picks from them, 10,000 to 1,000,000 rows
    python -m bench.million neighbors      the exact graph of 1,000,000 rows with themselves, k = 64
    python -m bench.million exact          10,000 of 1,000,000 rows, exact, from the features; goes on where it stopped
    python -m bench.million write          what was measured, into bench/RESULTS.md, with a plot

Rows are the clustered ones of `bench.large_selection`, 384 float32 features; --rows takes another number of them.
Nothing else may run meanwhile. Records lie in ~/.cache/mrtkern/million until they are written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mrtkern
from bench import data, machine, report
from bench.large_selection import GIB, NEAREST, D, mixture
from bench.worker import peak_bytes

OP = "million"
ROWS = 1_000_000
SIZES = (10_000, 31_623, 100_000, 316_228, ROWS)
KEPT = 100  # one of so many
PROBES = 8
SAMPLE = 2000  # rows on which the dense objective is measured
EXACT_TO = 100_000  # rows up to which exact greedy is run beside it
MEMORY = int(6.5 * GIB)
SLOPE, SKILL, RECALL = 1.2, 0.97, 0.95
SECONDS = {"approximate": 120, "neighbors": 500, "exact": 5400}  # to be reached, of 1,000,000 rows
RESULTS = Path(__file__).with_name("RESULTS.md")

Record = dict[str, Any]


def folder() -> Path:
    """Where records lie."""
    found = data.cached().parent / OP
    found.mkdir(parents=True, exist_ok=True)
    return found


def timed(run: Callable[[], Any]) -> tuple[Any, Record]:
    """The result of a call, its seconds, those of its processor, and its memory beyond what it gets and gives."""
    held: list[Any] = []
    began, used = time.monotonic(), time.process_time()

    def keep() -> Any:
        held.append(run())
        return held[0]

    peak = peak_bytes(keep)
    return held[0], {"seconds": time.monotonic() - began, "cpu": time.process_time() - used, "bytes": peak}


def coverage(x: Tensor, ids: Tensor, rows: Tensor) -> float:
    """How similar the nearest kept row is to a row of a sample, on average, in float64 sums."""
    among = x[ids].T.contiguous()
    return sum(float(((1 + x[part] @ among) / 2).amax(dim=1).double().sum()) for part in rows.split(256)) / len(rows)


def approximate(N: int) -> Record:
    """Graph and picks, end to end; beside them, where it ends soon, exact greedy."""
    x, K = mixture(N), N // KEPT
    graph, of_graph = timed(lambda: mrtkern.neighbors(x, NEAREST, approximate=PROBES, metric="clamped_cosine"))
    picks, of_picks = timed(lambda: mrtkern.facility_location(graph=graph, k=K))
    g = torch.Generator().manual_seed(0)
    rows, chance = torch.randperm(N, generator=g)[:SAMPLE], torch.randperm(N, generator=g)[:K]
    found = {"coverage": coverage(x, picks.ids, rows), "random": coverage(x, chance, rows)}
    if N <= EXACT_TO:
        exact, of_exact = timed(lambda: mrtkern.facility_location(x, k=K))
        found["exact"] = coverage(x, exact.ids, rows)
        found["exact_seconds"] = of_exact["seconds"]
    kept = {"recall": graph.recall, "worst": graph.recall_worst_tenth, "picked": len(picks.ids)}
    return {"K": K, "graph": of_graph, "picks": of_picks, **kept, **found}


def neighbors(N: int) -> Record:
    """The exact graph of all rows with themselves."""
    x = mixture(N)
    _, taken = timed(lambda: mrtkern.neighbors(x, NEAREST))
    return {"k": NEAREST, **taken}


def exact(N: int) -> Record:
    """Exact picks from the features; times add up over all runs that it took."""
    x, K = mixture(N), N // KEPT
    parts = folder() / f"exact-{N}.parts"
    began, used = time.monotonic(), time.process_time()
    try:
        picks, taken = timed(
            lambda: mrtkern.facility_location(x, k=K, max_memory=MEMORY, checkpoint=str(folder() / f"exact-{N}.picks"))
        )
    except BaseException:
        with parts.open("a") as file:
            file.write(json.dumps([time.monotonic() - began, time.process_time() - used]) + "\n")
        raise
    earlier = [json.loads(line) for line in parts.read_text().splitlines()] if parts.exists() else []
    taken["seconds"] += sum(part[0] for part in earlier)
    taken["cpu"] += sum(part[1] for part in earlier)
    g = torch.Generator().manual_seed(0)
    rows, chance = torch.randperm(N, generator=g)[:SAMPLE], torch.randperm(N, generator=g)[:K]
    worth = {"coverage": coverage(x, picks.ids, rows), "random": coverage(x, chance, rows)}
    bound = {"value": float(picks.value), "upper_bound": float(picks.upper_bound), "skill": float(picks.skill)}
    return {"K": K, "runs": len(earlier) + 1, **taken, **worth, **bound}


MEASURED: dict[str, Callable[[int], Record]] = {"approximate": approximate, "neighbors": neighbors, "exact": exact}


def measure(kind: str, N: int) -> None:
    """Run one, in this process, and keep its record with what it depends on."""
    machine.set_threads(torch.get_num_threads())
    record = {"rows": N, "facts": machine.facts("1")}  # of now: hours may pass
    record |= MEASURED[kind](N)
    path = folder() / f"{kind}-{N}.json"
    path.write_text(json.dumps(record, indent=1))
    print(f"{kind}, {N:,} rows: {json.dumps({k: v for k, v in record.items() if k != 'facts'})}", flush=True)


# What is written


def records(kind: str) -> list[Record]:
    """Those that were measured, by their number of rows."""
    found = [json.loads(path.read_text()) for path in folder().glob(f"{kind}-*.json")]
    return sorted(found, key=lambda record: record["rows"])


def both(record: Record, name: str) -> float:
    """Of a graph and of picks from it, together."""
    return float(record["graph"][name] + record["picks"][name])


def peak(record: Record) -> float:
    """Bytes beyond the input: the graph is there while picks are made."""
    lists = 12 * NEAREST * record["rows"]
    return float(max(record["graph"]["bytes"], record["picks"]["bytes"]) + lists)


def skill(record: Record) -> float | None:
    """What the picks gain over chance, of what exact greedy's gain, on the sampled rows."""
    if "exact" not in record:
        return None
    return float((record["coverage"] - record["random"]) / (record["exact"] - record["random"]))


def slope(found: Sequence[Record]) -> float:
    """Of the logarithm of time against that of rows, by least squares."""
    return statistics.linear_regression(
        [math.log(record["rows"]) for record in found], [math.log(both(record, "seconds")) for record in found]
    ).slope


def approximate_table(found: Sequence[Record]) -> str:
    """A line per number of rows."""
    header = ("rows", "kept", "graph s", "picks s", "together s", "GiB", "recall", "worst tenth", "coverage",
              "of exact's gain over chance", "exact s")  # fmt: skip
    lines = []
    for record in found:
        share, exact_seconds = skill(record), record.get("exact_seconds")
        lines.append((
            f"{record['rows']:,}", f"{record['K']:,}", f"{record['graph']['seconds']:.1f}",
            f"{record['picks']['seconds']:.1f}", f"{both(record, 'seconds'):.1f}", f"{peak(record) / GIB:.2f}",
            f"{record['recall']:.3f}", f"{record['worst']:.3f}", f"{record['coverage']:.4f}",
            "" if share is None else f"{share:.3f}", "" if exact_seconds is None else f"{exact_seconds:.1f}",
        ))  # fmt: skip
    return report.align(header, lines, is_markdown=True, numbers=slice(0, None))


def targets() -> str:
    """What was to be reached, and what was."""
    lines: list[tuple[str, str, str, str]] = []

    def row(what: str, target: str, reached: str, is_met: bool) -> None:
        lines.append((what, target, reached, "yes" if is_met else "no"))

    ran = records("approximate")
    for record in (one for one in ran if one["rows"] == ROWS):
        seconds, memory = both(record, "seconds"), peak(record) / GIB
        row("approximate, 1,000,000 rows", f"<= {SECONDS['approximate']} s", f"{seconds:.0f} s",
            seconds <= SECONDS["approximate"])  # fmt: skip
        row("", "<= 4 GiB beyond the input", f"{memory:.2f} GiB", memory <= 4)
        row("", f"recall >= {RECALL}", f"{record['recall']:.3f}", record["recall"] >= RECALL)
    for record in (one for one in ran if one["rows"] == EXACT_TO):
        share = skill(record) or 0.0
        row("approximate, 100,000 rows", f">= {SKILL} of exact's gain over chance", f"{share:.3f}", share >= SKILL)
    if len(ran) == len(SIZES):
        steep = slope(ran)
        row("approximate, 10,000 to 1,000,000 rows", f"slope <= {SLOPE}", f"{steep:.2f}", steep <= SLOPE)
    for kind, what in (("neighbors", "exact graph"), ("exact", "exact, from the features")):
        for record in (one for one in records(kind) if one["rows"] == ROWS):
            seconds = record["seconds"]
            row(f"{what}, 1,000,000 rows", f"<= {SECONDS[kind]:,} s", f"{seconds:,.0f} s", seconds <= SECONDS[kind])
            if kind == "exact":
                memory = record["bytes"] / GIB
                row("", f"<= {MEMORY / GIB} GiB beyond the input", f"{memory:.2f} GiB", record["bytes"] <= MEMORY)
    return report.align(("case", "target", "reached", "met"), lines, is_markdown=True, numbers=slice(2, 3))


def neighbors_text(record: Record) -> str:
    """The exact graph in words."""
    rows, seconds = record["rows"], record["seconds"]
    return (
        f"Exact graph of {rows:,} rows: {seconds:,.0f} s, {record['bytes'] / GIB:.2f} GiB beyond the input; "
        f"{rows * rows * D / seconds / 1e9:,.0f} GOP/s of products, each pair once."
    )


def exact_text(record: Record) -> str:
    """One exact selection in words."""
    return (
        f"Exact, {record['rows']:,} -> {record['K']:,}: {record['seconds']:,.0f} s in {record['runs']} runs, "
        f"{record['cpu']:,.0f} s of processors, {record['bytes'] / GIB:.2f} GiB beyond the input; coverage of "
        f"{SAMPLE:,} rows {record['coverage']:.4f}, of as many rows drawn at random {record['random']:.4f}; "
        f"value {record['value']:,.1f}, at most {record['upper_bound']:,.1f} is possible, skill {record['skill']:.3f}."
    )


def draw(path: Path, found: Sequence[Record]) -> None:
    """Time against rows: together, its parts, and exact greedy where it was run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = [record["rows"] for record in found]
    for label, seconds, width in (
        (f"approximate, slope {slope(found):.2f}", [both(record, "seconds") for record in found], 2.5),
        ("its graph", [record["graph"]["seconds"] for record in found], 1.2),
        ("its picks", [record["picks"]["seconds"] for record in found], 1.2),
    ):
        axes.plot(rows, seconds, marker="o", markersize=3, linewidth=width, label=label)
    exacts = [(record["rows"], record["exact_seconds"]) for record in found if "exact_seconds" in record]
    exacts += [(record["rows"], record["seconds"]) for record in records("exact") if record["rows"] > EXACT_TO]
    axes.plot(*zip(*exacts, strict=True), marker="s", markersize=4, linestyle="--", label="exact, from the features")
    axes.set(xscale="log", yscale="log", xlabel="rows N, of which N / 100 are kept", ylabel="seconds")
    axes.grid(which="major", alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def write(results: Path = RESULTS) -> None:
    """Put what was measured into RESULTS.md, with a plot."""
    ran = records("approximate")
    if not ran:
        sys.exit(f"bench.million: {folder()} must hold records of approximate, got none")
    path = results.parent / "results" / machine.name() / f"{OP}.png"
    draw(path, ran)
    facts = ran[-1]["facts"] | {"rounds": "1: each was measured once", "probes": str(PROBES)}
    body = [
        targets(), approximate_table(ran),
        *(neighbors_text(record) for record in records("neighbors") if record["rows"] >= ROWS),
        *(exact_text(record) for record in records("exact") if record["rows"] >= ROWS),
        f"![Seconds against rows, both on logarithmic axes](results/{path.parent.name}/{path.name})",
    ]  # fmt: skip
    report.write_section(results, machine.cpu(), OP, report.section(facts, body))
    print(f"written: {results}")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.million", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*MEASURED, "write"])
    parser.add_argument("--rows", type=int, metavar="N", help=f"measure this number (default: {ROWS:,})")
    args = parser.parse_args(arguments)
    if args.rows is not None and args.rows < KEPT:
        parser.error(f"--rows must be at least {KEPT}, got {args.rows}")
    if args.what == "write":
        write()
        return
    sizes = SIZES if args.what == "approximate" and args.rows is None else (args.rows or ROWS,)
    for N in sizes:  # a process each: what one leaves behind must not serve the next
        child = os.fork() if len(sizes) > 1 else 0
        if child == 0:
            measure(args.what, N)
            if len(sizes) > 1:
                os._exit(0)
        elif os.waitpid(child, 0)[1]:
            sys.exit(f"bench.million: {args.what} of {N:,} rows did not end")


if __name__ == "__main__":
    main()
