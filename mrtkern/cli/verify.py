"""`mrtkern verify`: whether this machine selects what every other one does, by the digest in the package."""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

from mrtkern import _dispatch
from mrtkern.cli import InputError, check_isa, counted, info, new_parser
from mrtkern.cli.progress import Steps
from mrtkern.digest import kinds

SUMMARY = "whether this machine selects, bit for bit, what every other one does"
DESCRIPTION = """\
Select from seeded problems, given as raw floats, and compare the sha256 of what is selected with the digest in the
package: the picks of facility_location, the lists of neighbors and the rows that deduplicate keeps. The digest is the
same for every instruction set (MRTKERN_ISA caps it), number of threads, backend and byte order.
"""
EXAMPLE = """\
example:
  $ mrtkern verify
  ...
  equal: all 300 blocks are those of the package's digest

exit status: 0 equal; 1 some block differs, which the last line names; 2 what was asked for cannot run here
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `mrtkern`."""
    parser = new_parser(subparsers, "verify", SUMMARY, DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add("--backend", choices=_dispatch.BACKENDS, help="who selects (default: what the library chooses on the CPU)")
    add("--threads", type=int, metavar="N", help="threads of the CPU kernels (default: those of torch)")
    add("--blocks", type=int, metavar="N", help="only the first N blocks of every kind (default: all)")
    add("--write", type=Path, metavar="FILE", help="write the digest of this machine instead of comparing it")


def run(args: argparse.Namespace) -> int:
    """Compare, or write; status 1 where something differs."""
    for name in ("threads", "blocks"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, got {getattr(args, name)}")
    check_isa()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    on_gpu = args.backend in ("cuda", "triton") and torch.cuda.is_available()
    where = kinds.Where(args.backend, "cuda" if on_gpu else "cpu")
    reasons = {name: kind.why_not(where) for name, kind in kinds.KINDS.items()}
    if all(reasons.values()):
        raise InputError(f"backend {args.backend!r} cannot run this: {next(iter(reasons.values()))}")
    print("\n".join(machine(where)), flush=True)
    found: dict[str, list[str]] = {}
    wrong: list[str] = []
    start, known = time.monotonic(), kinds.expected() if args.write is None else None
    with Steps() as steps:
        for name, kind in kinds.KINDS.items():
            if reasons[name]:
                print(f"{name:9} not run: {reasons[name]}", flush=True)
                continue
            found[name] = blocks_of(name, kind, where, args.blocks, steps)
            differing = [] if known is None else differences(found[name], known[name])
            wrong += [f"{name} {block}" for block in differing]
            print(line_of(name, found[name], differing, kind.problems), flush=True)
    print(f"time      {time.monotonic() - start:.1f} s")
    if args.write is not None:
        args.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"written: {args.write}")
        return 0
    print(verdict(sum(map(len, found.values())), wrong))
    return 1 if wrong else 0


def machine(where: kinds.Where) -> list[str]:
    """What the digest is of, a line each."""
    backend = where.backend or _dispatch.choose("neighbors", None, kinds.problem_of("neighbors", where))
    gpu = f" on {torch.cuda.get_device_name()}" if where.device == "cuda" else ""
    return [
        info.machine()[0],
        f"CPU       {cpu()}",
        f"kernels   {info.kernels()}",
        f"threads   {torch.get_num_threads()}",
        f"backend   {backend}{gpu}",
    ]


def cpu() -> str:
    """The name of the processor, where the system tells it."""
    path = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def blocks_of(name: str, kind: kinds.Kind, where: kinds.Where, most: int | None, steps: Steps) -> list[str]:
    """The digests of the first blocks of a kind."""
    count = kind.blocks if most is None else min(most, kind.blocks)
    steps.begin(name, total=count)
    digests = []
    for block in range(count):
        digests.append(kind.digest(block, where))
        steps.advance(1)
    return digests


def differences(found: list[str], known: list[str]) -> list[int]:
    """Numbers of the blocks that are not what they should be."""
    return [block for block, digest in enumerate(found) if digest != known[block]]


def line_of(name: str, found: list[str], differing: list[int], problems: int) -> str:
    """One line of the digest."""
    text = f"{len(differing)} differ" if differing else kinds.joined(found)
    return f"{name:9} {counted(len(found), 'block')} of {counted(problems, 'problem')}: {text}"


def verdict(count: int, wrong: list[str]) -> str:
    """The last line."""
    if not wrong:
        return f"equal: all {counted(count, 'block')} are those of the package's digest"
    shown = ", ".join(wrong[:8]) + (", …" if len(wrong) > 8 else "")
    return f"DIFFERENT: {len(wrong)} of {counted(count, 'block')} are not those of the package's digest: {shown}"
