"""`mrtkern select --global`: keep K rows of the whole table, as one call of facility_location.

    coverage            facility location, the default
    quality_diversity   with weights and qualities, as for prompts, the reward scaled over the whole table
    additive            with a bonus
    random, reward      picks that are only scored

The exact selection meets every pair of rows, as (1 + cos) / 2; --approximate meets the 64 nearest of each, as
max(cos, 0). Numbers of the report:

    coverage      mean over all rows of (1 + cos) / 2 with the kept row that stands for them, 0 where none does
    diversity     mean pairwise 1 - cos of the kept rows
    value         F of the kept rows, the method's own objective in its own units; upper_bound: no K rows have more
    skill         (F - random) / (bound - random)
    reward_top_k  part of the kept rows that are among the K largest rewards
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrtkern.cli import InputError, counted, report
from mrtkern.cli.packing import Packed
from mrtkern.cli.progress import Steps
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.neighbors.lists import Neighbors
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.select import asked_of_one_set

SEARCHING = ("coverage", "quality_diversity", "additive")  # methods that pick by gain
METHODS = (*SEARCHING, "random", "reward")
NEIGHBOURS = 64  # of a row in the approximate graph: fewer leave rows that no kept one covers
SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)", re.ASCII)
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}  # powers of two
STOPS = ("stop_gain", "stop_fraction", "stop_coverage")
ONLY_SEARCHING = ("checkpoint", *STOPS, "polish")
ONLY_WHOLE = ("approximate", "max_memory", *ONLY_SEARCHING)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that go with --global alone."""
    add = parser.add_argument_group("with --global").add_argument
    add(
        "--approximate", type=int, metavar="PROBES",
        help=f"of each row only the {NEIGHBOURS} nearest of those in the PROBES cells nearest to it (16 is a start); "
        "the report has the part that was found",
    )  # fmt: skip
    add("--checkpoint", type=Path, metavar="FILE", help="save the picks here; the same command goes on from them")
    add("--stop-gain", type=float, metavar="G", help="keep no row that gains less")
    add("--stop-fraction", type=float, metavar="P", help="keep no row that gains less than this part of the first gain")
    enough = "enough once rows are so similar to the nearest kept row on average"
    add("--stop-coverage", type=float, metavar="C", help=enough)
    add(
        "--polish", type=int, metavar="SWAPS",
        help="then swap kept rows for others while that helps, at most so often (-1: as often as it does)",
    )  # fmt: skip
    half = "default: half of the machine's"
    add("--max-memory", metavar="SIZE", help=f"of the selection beside vectors and graph, such as 4G ({half})")


def flag(name: str) -> str:
    """An argument as it is written."""
    return "--" + name.replace("_", "-")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what does not go together; --max-memory becomes a number."""
    given = [name for name in ONLY_WHOLE if getattr(args, name) is not None]
    if not args.is_global:
        if given:
            raise InputError(f"{flag(given[0])} must come with --global, got --group-by")
        return
    if args.method not in METHODS:
        raise InputError(f"--method must be one of {', '.join(METHODS)} with --global, got {args.method}")
    for name in ("compare", "cut", "whole"):
        if getattr(args, name):
            raise InputError(f"{flag(name)} must come with --group-by, got --global")
    for name in ONLY_SEARCHING:
        if name in given and args.method not in SEARCHING:
            raise InputError(f"{flag(name)} must come with one of {', '.join(SEARCHING)}, got --method {args.method}")
    if args.approximate is not None and args.approximate < 1:
        raise InputError(f"--approximate must be at least 1, got {args.approximate}")
    if args.stop_gain is not None and not 0 <= args.stop_gain < float("inf"):
        raise InputError(f"--stop-gain must be finite and not negative, got {args.stop_gain}")
    for name in STOPS[1:]:
        if getattr(args, name) is not None and not 0 <= getattr(args, name) <= 1:
            raise InputError(f"{flag(name)} must be from 0 to 1, got {getattr(args, name)}")
    if args.polish is not None and args.polish < -1:
        raise InputError(f"--polish must be at least 0 swaps, or -1, got {args.polish}")
    if args.max_memory is not None:
        args.max_memory = size(args.max_memory)
    if args.checkpoint is not None:
        check_checkpoint(args.checkpoint)


def check_checkpoint(path: Path) -> None:
    """Refuse where no file can be before hours of work find out."""
    if path.is_dir():
        raise InputError(f"--checkpoint must be a file, got the folder {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"--checkpoint folder {str(path.parent)!r} does not exist")


def check_layout(args: argparse.Namespace, is_nested: bool) -> None:
    """Refuse lists of responses: they are prompts."""
    if args.is_global and is_nested:
        raise InputError(f"--global must be of a table with a response a row, got lists of responses in {args.input}")


def size(text: str) -> int:
    """4G as bytes."""
    found = SIZE.fullmatch(text.strip().upper().removesuffix("B").removesuffix("I"))
    count = int(float(found[1]) * 2 ** UNITS[found[2]]) if found is not None else 0
    if not 1 <= count < 2**63:
        raise InputError(f"--max-memory must be a size such as 4G or 512M, got {text!r}")
    return count


@dataclass(frozen=True)
class Found:
    """What was kept, with offsets as of one prompt, and the graph that it was found on."""

    selection: Any
    graph: Neighbors | None


def selected(args: argparse.Namespace, packed: Packed, vectors: Tensor, notes: list[str], steps: Steps) -> Found:
    """The selection; where a signal ends it, a line says how to go on."""
    k, graph = min(args.k, packed.num_rows), None
    reward = None if packed.reward is None else torch.from_numpy(packed.reward)
    try:
        if args.approximate is not None:
            steps.begin("finding neighbours")
            graph = neighbors(
                vectors, NEIGHBOURS, metric="clamped_cosine", approximate=args.approximate, progress=steps.reach
            )
        steps.begin(f"selecting ({args.method})")
        asked = asked_of_one_set(vectors, k, args.method, reward=reward, alpha=args.alpha, lam=args.lam, seed=args.seed)
        selection = facility_location(
            vectors if graph is None else None, k, graph=graph, fill=args.fill, seed=args.seed, **asked,
            **{name: getattr(args, name) for name in STOPS}, checkpoint=args.checkpoint,
            polish=True if args.polish == -1 else args.polish or 0, max_memory=args.max_memory, progress=steps.reach,
        )  # fmt: skip
    except (ValueError, MemoryError, OSError) as error:
        raise InputError(f"{args.input} cannot be selected from: {error}") from error
    except BaseException as ending:  # Ctrl-C or another signal
        steps.stop()
        if not isinstance(ending, Exception) and args.checkpoint is not None and args.checkpoint.exists():
            print(f"mrtkern select: the same command goes on from the picks in {args.checkpoint}", file=sys.stderr)
        raise
    offsets = selection.ids.new_tensor([0, len(selection.ids)])
    return Found(dataclasses.replace(selection, offsets=offsets), graph)


@dataclass(frozen=True)
class Scores:
    """One method on the whole table; None where the table has nothing to say."""

    kept: int
    coverage: float
    diversity: float | None
    mean_reward: float | None
    value: float
    upper_bound: float
    skill: float
    effective_k: int
    reward_top_k: float | None

    def as_json(self) -> dict[str, float | None]:
        """All of them."""
        return dict(vars(self))


def score(vectors: Tensor, packed: Packed, found: Found) -> Scores:
    """All the numbers."""
    selection = found.selection
    ids = selection.ids.numpy()
    overlap = reward = None
    if packed.reward is not None and len(ids):
        overlap = float(report.is_top_reward(packed, np.asarray([0, len(ids)]))[ids].mean())
        reward = report.mean(packed.reward[ids])
    return Scores(
        kept=len(ids),
        coverage=coverage(vectors, selection.owner),
        diversity=diversity(vectors[selection.ids]),
        mean_reward=reward,
        value=float(selection.value),
        upper_bound=float(selection.upper_bound),
        skill=float(selection.skill),
        effective_k=int(selection.effective_k),
        reward_top_k=overlap,
    )


def coverage(vectors: Tensor, owner: Tensor) -> float:
    """Mean similarity of a row to its owner."""
    total, rows = 0.0, max(1, report.NUMBERS_PER_CHUNK // vectors.shape[1])
    for x, its in zip(vectors.split(rows), owner.split(rows), strict=True):
        near = torch.nn.functional.cosine_similarity(x.double(), vectors[its.clamp(min=0)].double(), dim=1)
        total += float(torch.where(its >= 0, (1 + near) / 2, 0.0).sum())
    return total / len(vectors)


def diversity(kept: Tensor) -> float | None:
    """Mean of 1 - cos over pairs."""
    n = len(kept)
    if n < 2:
        return None
    unit = torch.nn.functional.normalize(kept.double(), dim=1)
    apart = float(unit.sum(0).square().sum() - unit.square().sum())  # sum of cos over pairs i != j
    return 1 - apart / (n * (n - 1))


def title(args: argparse.Namespace, packed: Packed, found: Found) -> str:
    """What was done, in one line."""
    rows, kept = counted(packed.num_rows, "row"), len(found.selection.ids)
    return f"{rows}, {kept:,} kept: {args.method}, K = {args.k}, seed {args.seed}"


def remarks(args: argparse.Namespace, packed: Packed, found: Found) -> list[str]:
    """What a reader of the table should know."""
    notes = []
    selection, graph = found.selection, found.graph
    kept, effective = len(selection.ids), int(selection.effective_k)
    if packed.num_rows < args.k:
        notes.append(f"the table has fewer than {counted(args.k, 'row')}: kept whole")
    if graph is not None:
        assert graph.recall is not None and graph.recall_worst_tenth is not None
        worst = f"in the worst tenth of the rows {100 * graph.recall_worst_tenth:.1f} %"
        notes.append(
            f"approximate: {100 * graph.recall:.1f} % of the {NEIGHBOURS} nearest were found, {worst}; "
            "value, bound and skill are those of the graph"
        )
        alone = int((selection.owner < 0).sum())
        if alone:
            notes.append(f"{counted(alone, 'row')} of {packed.num_rows:,} have no kept row among their neighbours")
    if any(getattr(args, name) is not None for name in STOPS):
        if kept < min(args.k, packed.num_rows):
            covers = "" if args.stop_coverage is None else "they cover enough, or "
            notes.append(f"stopped after {counted(kept, 'row')}: {covers}no other gains enough")
    elif effective < kept:
        notes.append(f"no row adds anything after {counted(effective, 'pick')}; the rest is filled by {args.fill}")
    return notes


def facts(args: argparse.Namespace, found: Found) -> dict[str, Any]:
    """What the JSON report holds more than for prompts."""
    graph = None
    if found.graph is not None:
        recall = {"recall": found.graph.recall, "recall_worst_tenth": found.graph.recall_worst_tenth}
        graph = {"probes": args.approximate, "neighbours": NEIGHBOURS, **recall}
    stops = {name: getattr(args, name) for name in (*STOPS, "polish")}
    return {"global": True, "graph": graph, "rows_without_owner": int((found.selection.owner < 0).sum()), **stops}
