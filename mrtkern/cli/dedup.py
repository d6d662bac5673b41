"""`mrtkern dedup`: one row of every chain of near-duplicates of a table.

reading.py streams the table, packing.py packs its vectors or texts, `mrtkern.deduplicate` finds the chains, and
writing.py streams the table again. Memory: the packed features, and one batch of the table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mrtkern import __version__
from mrtkern.cli import InputError, add_table, check_isa, counted, features, new_parser
from mrtkern.cli.packing import Packed, Wanted, is_nested, read_columns
from mrtkern.cli.progress import Steps
from mrtkern.cli.reading import ending, open_source
from mrtkern.cli.writing import Temporary, check_schema, write_rows
from mrtkern.ops.neighbors.deduplicate import Duplicates, deduplicate

KEEPS = ("first", "best", "medoid")
TYPES = {"mrt_owner": pa.int64(), "mrt_size": pa.int64()}
ROWS_AT_ONCE = 1 << 16  # whose vectors are in float64
SUMMARY = "keep one row of every chain of near-duplicates of a parquet, jsonl or csv file"
DESCRIPTION = """\
Keep one row of every chain of near-duplicates.

Rows are linked when the cosine of their vectors is at least --threshold; a chain is what links lead to, in any number
of steps. --rows chooses the threshold instead: exactly so many rows are kept. With --group-by rows of different prompts
are not linked.

The output has the input's columns, and mrt_owner (row number, from 0, of the kept row that stands for this one) and
mrt_size (rows of its chain, a weight for it). Rows keep the order of the file.
"""
EXAMPLE = """\
example: the glosses of each word of which none is nearly another; from the folder of the repository
  mrtkern dedup mrtkern/data/wordnet_senses.parquet -o distinct.parquet --text gloss --group-by word --threshold 0.6
the 5,000 glosses that are least alike, of every chain the one with the largest count
  mrtkern dedup mrtkern/data/wordnet_senses.parquet -o distinct.parquet --text gloss --rows 5000 \\
      --keep best --reward tag_count --report report.json

exit status: 0 done; 2 input that cannot be used: one sentence names row and column, and no output is written;
130 Ctrl-C: no output is written
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `mrtkern`."""
    parser = new_parser(subparsers, "dedup", SUMMARY, DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add_table(parser, writes=True)
    features.add_arguments(parser)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--threshold", type=float, metavar="T", help="cosine from which rows are linked, -1 to 1")
    size.add_argument("--rows", type=int, metavar="N", help="keep exactly so many rows")
    add("--group-by", metavar="COL", help="the prompt of a row: rows of different ones are not linked")
    kept = "the row of a chain that is kept: the first of the file, the one with the largest --reward, or the one most "
    add("--keep", choices=KEEPS, default="first", help=kept + "similar to all others (default: %(default)s)")
    add("--reward", metavar="COL", help="quality of a row, larger is better; for --keep best")
    add("--all-rows", action="store_true", help="write the dropped rows too, with the row that stands for each")
    add("--report", type=Path, metavar="R.json", help="write the numbers as JSON")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what no table could satisfy."""
    if args.threshold is not None and not -1 <= args.threshold <= 1:
        raise InputError(f"--threshold must be from -1 to 1, got {args.threshold}")
    if args.rows is not None and args.rows < 1:
        raise InputError(f"--rows must be at least 1, got {args.rows}")
    if args.rows is not None and args.group_by is not None:
        raise InputError("--rows must come without --group-by, got both")
    if (args.keep == "best") != (args.reward is not None):
        raise InputError("--keep best and --reward need each other")
    if args.text_model is not None and args.text is None:
        raise InputError("--text-model needs --text, the column of its texts")
    ending(args.output, "output")
    seen: dict[str, str] = {}
    for role, path in {"input": args.input, "output": args.output, "--report": args.report}.items():
        other = path and seen.setdefault(os.path.realpath(path), role)
        if path is not None and other != role:
            raise InputError(f"{role} must not be the {other} itself, got {str(path)!r}")
    features.check_model(args.text_model)
    if args.text:
        importlib.import_module("sklearn")


class Marked(NamedTuple):
    """The added columns, in file order."""

    rank: Any  # [T] int32: 0 for a kept row, -1
    owner: Any  # [T] int64
    size: Any  # [T] int64

    @property
    def types(self) -> dict[str, Any]:
        """Names and types."""
        return TYPES

    def column(self, name: str, picked: Any) -> Any:
        """The column `name` for the rows `picked`."""
        return pa.array(getattr(self, name.removeprefix("mrt_"))[picked], TYPES[name])


def run(args: argparse.Namespace) -> int:
    """Find, write, tell."""
    check_arguments(args)
    check_isa()
    source = open_source(args.input)
    wanted = Wanted(args.group_by, args.embedding, args.text, args.reward)
    if is_nested(source, wanted):
        raise InputError(f"dedup takes a table with a response a row, got lists of responses in {args.input}")
    check_schema(source, args.output.suffix.lower(), TYPES, "dedup")
    with ExitStack() as stack:
        out = Temporary(args.output, "output").opened(stack)
        report = None if args.report is None else Temporary(args.report, "--report").opened(stack)
        steps = stack.enter_context(Steps())
        steps.begin("reading", source.num_rows)
        packed = read_columns(source, wanted, steps.advance)
        steps.begin("turning texts into vectors" if args.text else "checking")
        vectors = features.of(packed, args.text_model)
        steps.begin("finding near-duplicates")
        found = duplicates(args, packed, vectors, steps)
        steps.begin("writing", packed.num_rows)
        marked = in_file_order(packed, kept_of(args.keep, found, packed, vectors), found)
        write_rows(source, packed, marked, args.all_rows, out, steps.advance)
        out.commit()
        if report is not None:
            report.file.write(json.dumps(facts(args, found, packed), indent=2).encode() + b"\n")
            report.commit()
    print(told(args, found, packed))
    return 0


def duplicates(args: argparse.Namespace, packed: Packed, vectors: torch.Tensor, steps: Steps) -> Duplicates:
    """Chains of packed rows."""
    offsets = None if args.group_by is None else torch.from_numpy(packed.offsets)
    try:
        return deduplicate(
            vectors, args.threshold, num_rows=args.rows, offsets=offsets, return_groups=True, progress=steps.reach
        )
    except (ValueError, MemoryError) as error:
        raise InputError(f"{args.input} cannot be searched for duplicates: {error}") from error


def kept_of(keep: str, found: Duplicates, packed: Packed, vectors: torch.Tensor) -> Any:
    """[chains] the packed row that is kept of each, in the order of found.ids; the first of equals in the file."""
    ids, T = found.ids.numpy(), len(found.representative)
    chain = np.searchsorted(ids, found.representative.numpy())
    places = np.arange(T) if packed.order is None else packed.order
    if keep == "best":
        merit = packed.reward
    elif keep == "medoid":
        merit = centrality(vectors, torch.from_numpy(chain), len(ids)).numpy()
    else:
        merit = np.zeros(T)
    order = np.lexsort((places, -merit, chain))
    return order[np.searchsorted(chain[order], np.arange(len(ids)))]


def centrality(vectors: torch.Tensor, chain: torch.Tensor, num_chains: int) -> torch.Tensor:
    """[T] sum of the cosines of a row with all rows of its chain, float64."""
    total = vectors.new_zeros((num_chains, vectors.shape[1]), dtype=torch.float64)
    parts = list(zip(vectors.split(ROWS_AT_ONCE), chain.split(ROWS_AT_ONCE), strict=True))
    for x, its in parts:
        total.index_add_(0, its, torch.nn.functional.normalize(x.double(), dim=1))
    return torch.cat([(torch.nn.functional.normalize(x.double(), dim=1) * total[its]).sum(dim=1) for x, its in parts])


def in_file_order(packed: Packed, kept: Any, found: Duplicates) -> Marked:
    """Marks of the rows as the file has them."""
    T = len(found.representative)
    places = np.arange(T) if packed.order is None else packed.order
    chain = np.searchsorted(found.ids.numpy(), found.representative.numpy())
    marked = Marked(np.full(T, -1, dtype=np.int32), np.empty(T, dtype=np.int64), np.empty(T, dtype=np.int64))
    marked.rank[places[kept]] = 0
    marked.owner[places] = places[kept][chain]
    marked.size[places] = found.sizes.numpy()[chain]
    return marked


def facts(args: argparse.Namespace, found: Duplicates, packed: Packed) -> dict[str, Any]:
    """For the JSON report."""
    sizes = found.sizes.numpy()
    return {
        "mrtkern": __version__, "input": str(args.input), "output": str(args.output), "rows": packed.num_rows,
        "kept": len(sizes), "threshold": args.threshold, "keep": args.keep, "group_by": args.group_by,
        "column": args.embedding or args.text, "largest_chain": int(sizes.max()),
        "chains_of_several": int((sizes > 1).sum()),
    }  # fmt: skip


def told(args: argparse.Namespace, found: Duplicates, packed: Packed) -> str:
    """What was done."""
    sizes = found.sizes.numpy()
    several, largest = int((sizes > 1).sum()), int(sizes.max())
    by = f"threshold {args.threshold}" if args.threshold is not None else f"{args.rows:,} rows asked for"
    return (
        f"{counted(packed.num_rows, 'row')}, {len(sizes):,} kept ({by}): "
        f"{counted(several, 'chain')} of several rows, the largest of {largest:,}"
    )
