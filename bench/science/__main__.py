"""`python -m bench.science [name ...]`: run experiments, draw them, and write their sections of bench/SCIENCE.md."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from typing import Any

import torch

from bench.science import EXPERIMENTS, common

SEEDS = 24
EXAMPLE = f"""\
example: python -m bench.science budget modes
         python -m bench.science gradients --seeds 4

With fewer than {common.FEWEST_SEEDS} seeds an experiment only prints.
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.science", description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(EXPERIMENTS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    for name in args.names:
        if name not in EXPERIMENTS:
            parser.error(f"name must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")
    args.names = args.names or list(EXPERIMENTS)
    return args


def section(experiment: Any, name: str, found: common.Found, seeds: int) -> str:
    """What SCIENCE.md says of an experiment."""
    parts = [experiment.CLAIM, f"![{experiment.HEADING}](results/science_{name}.png)", f"{seeds} seeds."]
    parts.append(experiment.table(found))
    parts += ["\n".join(f"* {finding}" for finding in experiment.findings(found))]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    args = parse(arguments)
    torch.set_num_threads(1)  # thousands of small problems
    order = common.headings()
    for name in args.names:
        start, experiment = time.monotonic(), importlib.import_module(f"bench.science.{name}")
        found = experiment.measure(args.seeds)
        print(f"{experiment.HEADING}\n\n{section(experiment, name, found, args.seeds)}\n", flush=True)
        print(f"{time.monotonic() - start:.0f} s", end="", flush=True)
        if args.seeds >= common.FEWEST_SEEDS:
            picture = common.figure(*experiment.SIZE)
            experiment.draw(picture, found)
            common.save(picture, common.PICTURES / f"science_{name}.png")
            common.write_section(experiment.HEADING, section(experiment, name, found, args.seeds), order)
            print(f", written: {common.DOCUMENT.name}, results/science_{name}.png", end="")
        print("\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
