"""`mrtkern select`: keep K of the rows of every prompt of a table.

reading.py streams the table; packing.py packs the needed columns (pass 1); features.py turns texts into vectors; the
library selects; writing.py streams the table again and writes what is kept (pass 2); report.py and plot.py tell of it.
With --global whole.py selects from all rows as one set, and whole_plot.py draws them.
Memory: the packed features, and one batch of the table; twice the features when the rows of a prompt stand apart.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from mrtkern import __version__
from mrtkern.cli import InputError, add_table, check_isa, counted, features, new_parser, report, whole
from mrtkern.cli.packing import Packed, Wanted, is_nested, read_columns
from mrtkern.cli.progress import Steps
from mrtkern.cli.reading import Source, ending, open_source
from mrtkern.cli.writing import Temporary, added, check_schema, write_rows
from mrtkern.select import METHODS, NEED_REWARD, select_responses

DRY = 0.5  # part of the prompts that run out of gains from which the report says so
SUMMARY = "keep K of the rows of every group, or of all rows, of a parquet, jsonl or csv file"
DESCRIPTION = """\
Keep K of the N responses of every prompt, or (--global) K rows of the whole table.

A row is a response, or (nested) a row is a prompt whose --embedding, --text and --reward columns hold lists. Rows of a
prompt may stand anywhere in the file; their order inside the prompt is what identifies them, so with the same seed the
random methods keep the same ones however the prompts are ordered or spread over files. The output has the input's
columns, and mrt_rank (pick order), mrt_gain, mrt_owner (row number of the response that stands for this one) and
mrt_share (part of the prompt it stands for).

In a nested output every list column with one entry per response is cut to the kept ones, in pick order, but no
conversation (a list of turns with role and content); --cut and --whole decide otherwise. With --all-rows nothing is cut
and the lists stay in input order. There mrt_owner is a position, from 0, in the prompt's list as the
input has it (lists of a prompt that is spread over several rows count as one, in file order).

--global takes a table of a row per response. The exact selection meets every pair of rows; with --approximate it meets
the 64 nearest of each, for millions of rows. The report has the value, an upper bound on the best possible one, and the
skill: 0 is a random draw, 1 the bound.
"""
EXAMPLE = """\
example: 4 glosses of each of 517 words, all methods compared; from the folder of the repository
  mrtkern select mrtkern/data/wordnet_senses.parquet -o kept.parquet --group-by word --k 4 \\
      --text gloss --reward tag_count --compare --report report.json --plot kept.png
the same, of all 9,275 glosses together 100
  mrtkern select mrtkern/data/wordnet_senses.parquet -o kept.parquet --global --k 100 --text gloss --plot kept.png
the form for millions of rows; stopped by Ctrl-C, the same command goes on from the picks in its checkpoint
  mrtkern select rows.parquet -o kept.parquet --global --k 10000 --embedding vector --approximate 16 \\
      --checkpoint picks.json --max-memory 4G --stop-fraction 0.001

The same seed gives the same bytes (with --text: with the same version of scikit-learn).
exit status: 0 done; 2 input that cannot be used: one sentence names row and column, and no output is written;
130 Ctrl-C: no output is written
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `mrtkern`."""
    parser = new_parser(subparsers, "select", SUMMARY, DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add_table(parser, writes=True)
    among = parser.add_mutually_exclusive_group(required=True)
    among.add_argument("--group-by", metavar="COL", help="the prompt of a row")
    among.add_argument("--global", dest="is_global", action="store_true", help="keep K rows of the whole table")
    add(
        "--k", type=int, metavar="K", required=True, help="rows to keep of every prompt; smaller prompts are kept whole"
    )
    add("--method", choices=METHODS, help="default: random, with --global coverage")
    features.add_arguments(parser)
    add("--reward", metavar="COL", help="quality of a row, larger is better; for " + ", ".join(NEED_REWARD))
    add("--alpha", type=float, default=0.75, help="quality_diversity: exponent of the quality (default: %(default)s)")
    add("--lam", type=float, default=0.5, help="additive: share of the reward, 0 to 1 (default: %(default)s)")
    add("--cut", metavar="COL", action="append", default=[], help="nested: COL has an entry per response; repeatable")
    add("--whole", metavar="COL", action="append", default=[], help="nested: leave the lists of COL whole; repeatable")
    fill = ("coverage", "random", "none")
    add(
        "--fill", choices=fill, default="coverage", help="what follows once no row adds anything (default: %(default)s)"
    )
    add("--seed", type=int, default=0, help="of the random methods (default: %(default)s); same seed, same bytes")
    add("--all-rows", action="store_true", help="write the dropped rows too, with an empty mrt_rank")
    add("--compare", action="store_true", help="run every method and show all of them; OUT holds --method")
    add("--report", type=Path, metavar="R.json", help="write the numbers as JSON")
    add("--plot", type=Path, metavar="P.png", help="write a picture of what was kept")
    whole.add_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what no table could satisfy; settle the default of --method."""
    args.method = args.method or ("coverage" if args.is_global else "random")
    whole.check_arguments(args)
    if args.k < 1:
        raise InputError(f"--k must be at least 1, got {args.k}")
    if not 0 <= args.alpha < math.inf:
        raise InputError(f"--alpha must be finite and not negative, got {args.alpha}")
    if not 0 <= args.lam <= 1:
        raise InputError(f"--lam must be from 0 to 1, got {args.lam}")
    if not -(2**63) <= args.seed < 2**63:
        raise InputError(f"--seed must be from -2**63 to 2**63 - 1, got {args.seed}")
    if args.method in NEED_REWARD and args.reward is None:
        raise InputError(f"--method {args.method} needs --reward, the column of its rewards")
    if args.embedding is not None and args.embedding == args.reward:
        raise InputError(f"--reward must not be the column of --embedding, got {args.reward!r}")
    if args.text_model is not None and args.text is None:
        raise InputError("--text-model needs --text, the column of its texts")
    ending(args.output, "output")
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise InputError(f"--plot must end in .png, got {str(args.plot)!r}")
    paths = {"input": args.input, "output": args.output, "--report": args.report, "--plot": args.plot}
    paths["--checkpoint"] = args.checkpoint
    seen: dict[str, str] = {}
    for role, path in paths.items():
        other = path and seen.setdefault(os.path.realpath(path), role)
        if path is not None and other != role:
            raise InputError(f"{role} must not be the {other.lstrip('-')} itself, got {str(path)!r}")
    features.check_model(args.text_model)
    has_learning = args.text or (args.is_global and (args.approximate or args.plot))
    for module in (["sklearn"] if has_learning else []) + (["matplotlib"] if args.plot else []):
        importlib.import_module(module)


def run(args: argparse.Namespace) -> int:
    """Select, write, report."""
    check_arguments(args)
    check_isa()
    source = open_source(args.input)
    wanted = Wanted(args.group_by, args.embedding, args.text, args.reward, tuple(args.cut), tuple(args.whole))
    whole.check_layout(args, is_nested(source, wanted))
    check_schema(source, args.output.suffix.lower())
    with ExitStack() as stack:
        out = Temporary(args.output, "output").opened(stack)
        extras = [
            Temporary(path, role).opened(stack) if path is not None else None
            for path, role in ((args.report, "--report"), (args.plot, "--plot"))
        ]
        steps = stack.enter_context(Steps())
        steps.begin("reading", source.num_rows)
        packed = read_columns(source, wanted, steps.advance)
        steps.begin("turning texts into vectors" if args.text else "checking")
        vectors = features.of(packed, args.text_model)
        notes = rounded(source, args.output)

        def written(selection: Any) -> None:
            steps.begin("writing", packed.num_rows)
            write_rows(source, packed, added(packed, selection), args.all_rows, out, steps.advance)
            out.commit()

        course = whole_course if args.is_global else prompts_course
        course(args, packed, vectors, notes, steps=steps, written=written, extras=extras)
    return 0


def prompts_course(
    args: argparse.Namespace, packed: Packed, vectors: Any, notes: list[str], *, steps: Steps,
    written: Callable[[Any], None], extras: list[Temporary | None],
) -> None:  # fmt: skip
    """Select from every prompt, write, tell."""
    steps.begin(f"selecting ({args.method})")
    selection = selected(args, packed, vectors, args.method, notes)
    written(selection)
    selections = {args.method: selection} | compared(args, packed, vectors, notes, steps)
    ordered = {name: selections[name] for name in METHODS if name in selections}
    steps.begin("scoring")
    a = report.qualities(packed, args.alpha)
    scores = {name: report.score(vectors, packed, found, a) for name, found in ordered.items()}
    notes = remarks(args, packed, scores) + notes
    steps.begin("drawing")
    numbers = facts(args, packed, vectors)

    def draw(file: Any) -> None:
        plot = importlib.import_module("mrtkern.cli.plot")
        plot.draw(file, packed, vectors, ordered, scores, args.method)

    tell(args.output, lambda: report.as_json(numbers, scores, notes), draw, extras)
    steps.stop()
    report.print_table(scores, args.method, title(packed, scores[args.method], args), notes)


def whole_course(
    args: argparse.Namespace, packed: Packed, vectors: Any, notes: list[str], *, steps: Steps,
    written: Callable[[Any], None], extras: list[Temporary | None],
) -> None:  # fmt: skip
    """Select from the table as one set, write, tell."""
    found = whole.selected(args, packed, vectors, notes, steps)
    written(found.selection)
    steps.begin("scoring")
    scores = {args.method: whole.score(vectors, packed, found)}
    notes = whole.remarks(args, packed, found) + notes
    steps.begin("drawing")
    numbers = {name: value for name, value in facts(args, packed, vectors).items() if "prompts" not in name}
    numbers |= whole.facts(args, found)

    def draw(file: Any) -> None:
        plot = importlib.import_module("mrtkern.cli.whole_plot")
        plot.draw(file, vectors, found.selection, args.method)

    tell(args.output, lambda: report.as_json(numbers, scores, notes), draw, extras)
    steps.stop()
    report.print_table(scores, args.method, whole.title(args, packed, found), notes)


def rounded(source: Source, output: Path) -> list[str]:
    """What JSON lines hold and no other file could, as a note."""
    if not source.rounded or output.suffix.lower() == ".jsonl":
        return []
    names = ", ".join(repr(name) for name in sorted(source.rounded))
    return [f"whole numbers from 2**53 on are rounded, because numbers with fractions stand beside them: {names}"]


def selected(args: argparse.Namespace, packed: Packed, vectors: Any, method: str, notes: list[str]) -> Any:
    """One method's Selection; the library's warnings become notes."""
    offsets, key = torch.from_numpy(packed.offsets), torch.from_numpy(packed.group_key)
    reward = None if packed.reward is None else torch.from_numpy(packed.reward)
    options = {"alpha": args.alpha, "lam": args.lam, "fill": args.fill, "seed": args.seed}
    k = min(args.k, int(packed.offsets[-1]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            found = select_responses(vectors, offsets, k, method=method, reward=reward, group_key=key, **options)
        except (ValueError, MemoryError) as error:
            raise InputError(f"{args.input} cannot be selected from: {error}") from error
    texts = [str(warning.message) for warning in caught]
    notes += [text for text in texts if text.startswith(("mrtkern", "select_responses")) and text not in notes]
    return found


def compared(args: argparse.Namespace, packed: Packed, vectors: Any, notes: list[str], steps: Steps) -> dict[str, Any]:
    """With --compare, the other methods' Selections."""
    found = {}
    for method in METHODS if args.compare else ():
        if method != args.method and (packed.reward is not None or method not in NEED_REWARD):
            steps.begin(f"selecting ({method})")
            found[method] = selected(args, packed, vectors, method, notes)
    return found


def title(packed: Packed, scores: report.Scores, args: argparse.Namespace) -> str:
    """What was done, in one line."""
    rows, prompts = counted(int(packed.offsets[-1]), "row"), counted(len(packed.labels), "prompt")
    return f"{rows} of {prompts}, {scores.kept:,} kept: {args.method}, K = {args.k}, seed {args.seed}"


def remarks(args: argparse.Namespace, packed: Packed, scores: dict[str, report.Scores]) -> list[str]:
    """What a reader of the table should know."""
    notes = []
    sizes = packed.offsets[1:] - packed.offsets[:-1]
    small = int((sizes < args.k).sum())
    if small:
        have = "has" if small == 1 else "have"
        notes.append(f"{counted(small, 'prompt')} {have} fewer than {counted(args.k, 'row')}: kept whole")
    if packed.splits is not None and not args.all_rows:
        notes.append(f"nested: cut to the kept entries: {', '.join(packed.cut)}")
        if packed.uncut:
            others = ", ".join(f"{name!r} ({why})" for name, why in packed.uncut.items())
            notes.append(f"nested: left whole, without one entry per response: {others}")
    dry = [(name, row) for name, row in scores.items() if row.ran_dry > DRY]
    for name, row in dry:
        rest = "nothing follows" if args.fill == "none" else f"the rest is filled by {args.fill}"
        after = f"after {row.effective_k:.2f} picks on average"
        notes.append(f"{name}: no row adds anything in {100 * row.ran_dry:.0f} % of prompts {after}; {rest}")
    if args.compare and packed.reward is None:
        notes.append(f"without --reward there is no {', '.join(NEED_REWARD)}")
    return notes


def facts(args: argparse.Namespace, packed: Packed, vectors: Any) -> dict[str, Any]:
    """What was asked and what was found, for the JSON report."""
    sizes = packed.offsets[1:] - packed.offsets[:-1]
    return {
        "mrtkern": __version__,
        "input": str(args.input),
        "output": str(args.output),
        "rows": packed.num_rows,
        "responses": int(packed.offsets[-1]),
        "prompts": len(packed.labels),
        "prompts_kept_whole": int((sizes < args.k).sum()),
        "k": args.k,
        "method": args.method,
        "seed": args.seed,
        "alpha": args.alpha,
        "lam": args.lam,
        "fill": args.fill,
        "features": {"column": args.embedding or args.text, "model": args.text_model, "dimensions": vectors.shape[1]},
        "reward": args.reward,
    }


def tell(
    output: Path, numbers: Callable[[], bytes], draw: Callable[[Any], None], extras: list[Temporary | None]
) -> None:
    """The JSON report and the picture. The kept rows are already in place, and stay there when this fails."""
    report_file, picture = extras
    try:
        if report_file is not None:
            report_file.file.write(numbers())
            report_file.commit()
        if picture is not None:
            draw(picture.file)
            picture.commit()
    except (InputError, OSError, MemoryError, ValueError, OverflowError) as error:
        raise InputError(f"{output} is written, but what was asked beside it is not: {error}") from error
