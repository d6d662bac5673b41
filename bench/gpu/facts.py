"""`python -m bench.gpu.facts FILE`: what the machine is, and how fast it copies and multiplies, as JSON."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import machine
from mrtkern.ops.linear_cross_entropy.library import Products, adds_wide, multiplies_wide

PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-xdist", "pybind11", "liger-kernel", "cut-cross-entropy")
TOOLS = ("nvcc", "c++", "compute-sanitizer", "ncu")
COPIED = 1 << 31  # bytes
SIZES = {torch.bfloat16: 8192, torch.float32: 4096}  # of square matrices
CALLS = 10
HEAD = (32_000, 4096)  # classes and features of a head
BATCHES = (1, 16, 128, 1000, 1024, 2048)  # rows; chunks of one size would give a row the same bits in every batch


def seconds(run: Callable[[], Any]) -> float:
    """The median of a few calls by the device's clock, after as many to warm up."""
    found = []
    for _ in range(2 * CALLS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(found[CALLS:])


def _logits(weight: Tensor, h: Tensor) -> Tensor:
    """As a linear head makes them."""
    products = Products(weight, None, torch.bfloat16)
    z = torch.empty((len(h), len(weight)), dtype=products.logits_type, device=h.device)
    products.logits(z, h)
    return z


def _head(device: torch.device, head: tuple[int, int], rows: int) -> tuple[Tensor, Tensor]:
    """weight and hidden, bfloat16."""
    V, D = head
    generator = torch.Generator(device).manual_seed(0)
    found = (torch.randn(n, D, generator=generator, device=device, dtype=torch.float32) for n in (V, rows))
    weight, hidden = (value.to(torch.bfloat16) for value in found)
    return weight, hidden


def same_bits(device: torch.device, head: tuple[int, int], batches: tuple[int, ...], rows: int) -> list[int]:
    """The numbers of rows whose logits have the bits that they have among `rows`."""
    weight, hidden = _head(device, head, rows)
    expected = _logits(weight, hidden)
    return [count for count in batches if torch.equal(_logits(weight, hidden[:count]), expected[:count])]


def moved_bits(device: torch.device, head: tuple[int, int], rows: int) -> bool:
    """Whether logits of a row change their bits with its place among as many rows."""
    weight, hidden = _head(device, head, rows)
    expected = _logits(weight, hidden)
    return any(
        not torch.equal(_logits(weight, hidden.roll(shift, 0)), expected.roll(shift, 0)) for shift in (1, 77, rows // 2)
    )


def of_device() -> dict[str, Any]:
    """Of the first GPU: its data, and what it reaches."""
    properties = torch.cuda.get_device_properties(0)
    source = torch.ones(COPIED, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    found: dict[str, Any] = {
        "device": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory GiB": round(properties.total_memory / 2**30, 1),
        "copy TB/s": round(2 * COPIED / seconds(lambda: target.copy_(source)) / 1e12, 3),
        "addmm adds bfloat16 products to float32": adds_wide(source.device, torch.bfloat16),
        "mm leaves bfloat16 products in float32": multiplies_wide(source.device, torch.bfloat16),
        "batches whose rows have the bits of 2,816": same_bits(source.device, HEAD, BATCHES, 2816),
        "rows have the same bits at other places": not moved_bits(source.device, HEAD, 2816),
    }
    for dtype, size in SIZES.items():
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.float32).to(dtype) for _ in range(2))
        rate = 2 * size**3 / seconds(lambda a=a, b=b: a @ b) / 1e12
        found[f"{str(dtype).removeprefix('torch.')} product TFLOP/s"] = round(rate, 1)
    return found


def main() -> None:
    """Write the facts, and print them."""
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "commit": machine.commit(),
        "packages": [machine.version(name) for name in PACKAGES],
        "tools": {name: shutil.which(name) for name in TOOLS},
    }
    if torch.cuda.is_available():
        found |= of_device()
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1), encoding="utf-8")
    print("\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
