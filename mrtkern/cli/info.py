"""`mrtkern info`: what this installation can run on this machine, and the reason for everything it cannot."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import os
import platform
from types import ModuleType
from typing import Any

import torch

from mrtkern import __version__, _dispatch
from mrtkern.cli import check_isa, new_parser
from mrtkern.ops import OPS

EXAMPLE = """\
example:
  $ mrtkern info
  kernels   avx512 (available: avx512, avx2, portable), compiler gcc 12.2.0
  threads   torch uses 8, the machine has 16
  CUDA      none: mrtkern was installed without mrtkern._cuda, which MRTKERN_CUDA=1 builds
  ...
  operation             backend    device  runs
  ...
  cross_entropy         triton     cpu     no: needs a CUDA tensor, got one on cpu
  cross_entropy         cpu        cpu     yes: float32, bfloat16 and float16
  cross_entropy         reference  cpu     yes
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `mrtkern`."""
    summary = "what this installation can run, and why not the rest"
    new_parser(subparsers, "info", summary, summary, EXAMPLE)


def run(args: argparse.Namespace) -> int:
    """Print everything; status 0 whatever is missing, for that is an answer too."""
    del args
    check_isa()
    print("\n".join([*machine(), "", *table()]))
    return 0


def machine() -> list[str]:
    """Versions, kernels, threads, GPUs and CUDA kernels, one line each."""
    system = f"{platform.system()} {platform.machine()}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [
        f"mrtkern   {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {system}",
        f"kernels   {kernels()}",
        f"threads   torch uses {torch.get_num_threads()}, the machine has {os.cpu_count()}",
        f"GPUs      {', '.join(gpus) or 'none'}",
        f"CUDA      {cuda()}",
    ]


def extension(name: str, lacks: str) -> ModuleType | str:
    """A compiled part of mrtkern, or why there is none."""
    if importlib.util.find_spec(name) is None:
        return f"none: mrtkern was installed without {lacks}"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return f"none: {error}"


def kernels() -> str:
    """The instruction set in use, or why there are no compiled kernels."""
    C = extension("mrtkern._C", "a C++ compiler, so the PyTorch reference runs")
    if isinstance(C, str):
        return C
    cap = os.environ.get("MRTKERN_ISA")
    capped = f", capped by MRTKERN_ISA={cap}" if cap else ""
    return f"{C.isa()}{capped} (available: {', '.join(C.isas())}), compiler {C.built_with()}"


def cuda() -> str:
    """What the CUDA extension was built for and which devices it can use, or why there is none."""
    C = extension("mrtkern._cuda", "mrtkern._cuda, which MRTKERN_CUDA=1 builds")
    if isinstance(C, str):
        return C
    archs = ", ".join(f"sm_{arch}" for arch in C.archs())
    major, minor = divmod(C.runtime_version() // 10, 100)
    return f"mrtkern._cuda for {archs}, runtime {major}.{minor}, devices: {C.device_count()}"


def table() -> list[str]:
    """A line per operation, backend and device: yes and within which LIMITS of its module, or the sentence why not."""
    rows = [("operation", "backend", "device", "runs")]
    for op in OPS:
        case = importlib.import_module(f"mrtkern.ops.{op}.problem").CASES[0]
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            problem = dataclasses.replace(case.problem, device=device)
            for backend in _dispatch.BACKENDS:
                reason = _dispatch.why_not(op, backend, problem)
                limits = getattr(_dispatch.load(op, backend), "LIMITS", None)
                yes = "yes" if limits is None else f"yes: {limits}"
                rows.append((op, backend, device, yes if reason is None else f"no: {reason}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]
