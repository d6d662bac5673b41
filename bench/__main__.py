"""`python -m bench [op ...]`: time every case against its peers in one interleaved run, and write RESULTS.md."""

from __future__ import annotations

import argparse
import importlib
import math
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import OPS, device, machine, report, static
from bench.harness import Competitor, WrongAnswer, interleave
from bench.roofline import Flush, Roofline
from bench.worker import ROOT, Apart, Worker, peak_bytes

ROUNDS = 21  # odd, so that a median is a measurement
QUICK_ROUNDS = 3
RESULTS = Path(__file__).with_name("RESULTS.md")
EXAMPLE = """\
example: python -m bench facility_location --peers
         python -m bench facility_location --base HEAD~1 --case "800 x 64" --quick

A run of all cases with all peers and at least as many rounds as by default rewrites the operation's section of
bench/RESULTS.md; any other run only prints.
Exit status 1: a competitor's answer is wrong, and nothing is reported about that case. With --device such a competitor
is a row that says so, and the others are timed.
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m bench", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="op", help=f"any of {', '.join(OPS)} (default: all)")
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        help="time the peers too (default: yes, unless --base is given)",
    )
    parser.add_argument(
        "--base", metavar="REF", help="build this git revision in a temporary folder and time it alternately"
    )
    parser.add_argument("--case", default="", metavar="NAME", help="only cases whose name contains this")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for everyone (default: torch's)")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help=f"rounds of A B C (default: {ROUNDS}; {device.ROUNDS} with --device)"
    )
    parser.add_argument(
        "--static",
        action="store_true",
        help="report the machine code of GPU kernels and write bench/limits: of any op in Triton (facility_location: "
        "the gains of one step), of facility_location in CUDA C++ too where there is nvcc",
    )
    parser.add_argument("--device", action="store_true", help="time on a GPU and write files of its own")
    parser.add_argument("--dry", action="store_true", help="--device without one: tiny cases on the CPU")
    parser.add_argument("--seconds", type=float, metavar="N", default=math.inf, help="--device begins no case later")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where --device writes its rows as they come")
    parser.add_argument("--floors", action="store_true", help="write the least times on an H100 into RESULTS.md")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, no peak memory")
    args = parser.parse_args(arguments)
    for op in args.ops:
        if op not in OPS:
            parser.error(f"op must be one of {', '.join(OPS)}, got {op!r}")
    for name in ("threads", "rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if not args.device and (args.dry or args.json is not None or args.seconds != math.inf):
        parser.error("--dry, --json and --seconds go with --device, got none")
    args.ops = args.ops or list(OPS)
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else device.ROUNDS if args.device else ROUNDS)
    args.peers = args.base is None if args.peers is None else args.peers
    return args


@contextmanager
def built(ref: str) -> Iterator[Path]:
    """A temporary folder with the sources of a git revision and its compiled kernels."""
    with tempfile.TemporaryDirectory(prefix="bench-base-") as folder:
        archive = Path(folder) / "base.tar"
        subprocess.run(["git", "archive", f"--output={archive}", ref], cwd=ROOT, check=True)
        tree = Path(folder) / "tree"
        with tarfile.open(archive) as file:
            file.extractall(tree, filter="data")
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
        yield tree


def apart(op: Any, inputs: Any, stack: ExitStack, wanted: Sequence[Apart]) -> tuple[list[Competitor], dict[str, Any]]:
    """Competitors in a child process each, which times itself, and their answers."""
    if not wanted:
        return [], {}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
    torch.save(inputs, folder / "inputs")
    children = [stack.enter_context(Worker(op.OP, folder / "inputs", one.tree, one.environment)) for one in wanted]
    if len({child.hello["has_kernels"] for child in children}) > 1:
        raise RuntimeError(
            "bench: both revisions must have compiled kernels or neither, got "
            + " and ".join(str(child.hello) for child in children)
        )
    found, answers = [], {}
    for one, child in zip(wanted, children, strict=True):  # the same of all: what a process did before is timed too
        child.ask("answer", one.runs, file=str(folder / "answer"))
        answers[one.name] = torch.load(folder / "answer")
        clock = partial(child.ask, "time", one.runs)
        found.append(Competitor(one.name, clock, one.scale, one.note, clock, one.has_memory))
    return found, answers


def base(tree: Path, ref: str) -> list[Apart]:
    """Ours and the base: nothing of ours runs here, where the peers run."""
    return [Apart(report.OURS, report.OURS, has_memory=True), Apart(f"base {ref}", report.OURS, tree)]


def rounds_of(op: Any, case: Any, most: int) -> int:
    """How often a case is timed: fewer times where a round takes long."""
    return min(most, getattr(op, "MOST_ROUNDS", {}).get(case.name, most))


def said(rounds: int) -> str:
    """In words."""
    return f"{rounds} round" if rounds == 1 else f"{rounds} rounds"


def facts(ops: Iterable[Any], args: argparse.Namespace) -> dict[str, str]:
    """What stands above the numbers; notes below a table say where its case had fewer rounds."""
    rounds = {rounds_of(op, case, args.rounds) for op in ops for case in op.cases() if args.case in case.name}
    most = f"at most {args.rounds}" if min(rounds, default=args.rounds) < args.rounds else f"{args.rounds}"
    return machine.facts(most)


def run_case(op: Any, case: Any, args: argparse.Namespace, roofline: Roofline, tree: Path | None) -> report.CaseResult:
    """Check all answers, then time all competitors, then measure their memory."""
    inputs = op.make_inputs(case)
    own = op.own(inputs) if tree is None else []
    others = op.others(inputs) if args.peers else []
    limits = op.limits(inputs) if hasattr(op, "limits") and args.peers else []
    with ExitStack() as stack:
        ours, found = apart(op, inputs, stack, base(tree, args.base) if tree is not None else [])
        away, theirs = apart(op, inputs, stack, op.apart(inputs) if hasattr(op, "apart") and args.peers else [])
        answers = found | theirs | {one.name: op.answer(inputs, one.run()) for one in [*own, *others]}
        checked = op.check(inputs, answers)
        competitors = [*own, *ours, *others, *away, *limits, *roofline.competitors(inputs["x"].detach())]
        flush = Flush()
        interleave(competitors, 1, before=flush)  # the answers above were the first warm-up, this is the second
        rounds = rounds_of(op, case, args.rounds)
        seconds = interleave(competitors, rounds, before=flush, label=case.name)
    memory = {} if args.quick else peak_memory(op, inputs, [c.name for c in competitors if c.has_memory])
    nbytes, flops = op.work(case)
    notes = {competitor.name: competitor.note for competitor in competitors}
    notes[report.OURS] = f"backend {op.backend(case)}" + (f"; {said(rounds)}" if rounds < args.rounds else "")
    return report.CaseResult(case.name, seconds, checked, notes, memory, inputs["x"].nbytes, nbytes, flops)


def peak_memory(op: Any, inputs: Any, names: list[str]) -> dict[str, int | None]:
    """Peak memory of each, in a fresh process each: what one leaves behind must not serve the next. Where that would
    take longer than the calls, here, after what was freed went back to the system."""
    if getattr(op, "HAS_MEMORY_HERE", False):
        runs = {one.name: one.run for one in [*op.own(inputs), *op.others(inputs)]}
        return {name: peak_bytes(runs[name]) for name in names}
    found = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "inputs"
        torch.save(inputs, path)
        for name in names:
            with Worker(op.OP, path) as worker:
                found[name] = worker.ask("memory", name)
    return found


def run_op(op: Any, args: argparse.Namespace, roofline: Roofline, tree: Path | None) -> None:
    """All cases of one operation: print them, and write them down when the run is complete."""
    cases = [case for case in op.cases() if args.case in case.name]
    if not cases:
        raise SystemExit(
            f"bench: no case of {op.OP} has {args.case!r} in its name: " + ", ".join(c.name for c in op.cases())
        )
    results = []
    for case in cases:
        try:
            results.append(run_case(op, case, args, roofline, tree))
        except WrongAnswer as error:
            raise SystemExit(f"bench: {op.OP}, {case.name}: {error}") from None
        print(report.case_text(results[-1], is_markdown=False), end="\n\n", flush=True)
    if op.TARGETS:
        print(report.target_text(results, op.TARGETS, op.REASONS, is_markdown=False), end="\n\n", flush=True)
    if not args.peers or args.case or args.quick or args.rounds < ROUNDS or tree is not None:
        return
    body = [report.target_text(results, op.TARGETS, op.REASONS, is_markdown=True)]
    if hasattr(op, "table"):
        body.append(op.table(results))
    body += [report.case_text(result, is_markdown=True) for result in results]
    if hasattr(op, "figure"):
        body.append(op.figure(RESULTS.parent / "results" / machine.name()))
    report.write_section(RESULTS, machine.cpu(), op.OP, report.section(facts([op], args), body))
    print(f"written: {RESULTS.relative_to(ROOT)}")


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    args = parse(arguments)
    if args.static:
        from bench import static_cuda  # reads setup.py

        codes = static.compile_modules(static.modules_of(args.ops)) + static_cuda.compile_kernels(args.ops)
        static.publish(codes)
        return
    if args.floors:
        report.write_section(RESULTS, device.SECTION, "", device.floors())
        print(f"written: {RESULTS.relative_to(ROOT)}, section {device.SECTION!r}")
        return
    if args.device:
        device.main(args.ops, device.Options(args.rounds, args.case, args.seconds, args.json, args.dry))
        return
    machine.set_threads(args.threads or torch.get_num_threads())
    ops = [importlib.import_module(f"bench.{name}") for name in args.ops]
    print("\n".join(f"{name}: {value}" for name, value in facts(ops, args).items()), end="\n\n", flush=True)
    with built(args.base) if args.base else nullcontext(None) as tree:
        roofline = Roofline.choose(min(args.rounds, 5))
        for op in ops:
            run_op(op, args, roofline, tree)


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
