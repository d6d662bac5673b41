"""What this machine can do at best, measured in the run it is used for: bytes read a second, operations a second.

The roof of a call is the larger of two times: moving its bytes once, and doing its products at the rate of the faster
large matrix product of torch. Both run as competitors among the others, so that each round has its own roof. "Reading"
is a pass that touches every byte of the very features; which reader is the fastest differs between machines, so several
are tried.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.harness import Competitor, Spread, interleave

READ = "read"  # names of competitors
PRODUCT = "product"
PEAK = "multiplying alone"
READ_BYTES = 1 << 28  # at least; always 4 x the last-level cache, so that the pass comes from memory
PRODUCT_SIZE = 1536  # 7 Gflop a product: long enough to reach the plateau, short enough to repeat
ASSUMED_CACHE = 64 << 20  # bytes, where the system does not say


def read_sum(x: Tensor) -> None:
    """Sum the bytes as 64-bit integers: torch's own threads, no chain of floating-point additions."""
    x.view(-1).view(torch.int64).sum()


def read_compare(x: Tensor) -> None:
    """Compare the bytes with themselves by memcmp in as many threads as torch uses: the C library's fastest loads."""
    compare = ctypes.CDLL(None).memcmp  # ctypes lets go of the interpreter lock during the call
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    begin, step = x.data_ptr(), -(-x.nbytes // torch.get_num_threads())

    def part(start: int) -> None:
        compare(begin + start, begin + start, min(step, x.nbytes - start))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(part, range(0, x.nbytes, step)))


READERS: dict[str, Callable[[Tensor], None]] = {"torch.sum of int64": read_sum}
if os.name == "posix":
    READERS["memcmp in threads"] = read_compare


def peak(kind: str, flops: int) -> list[Competitor]:
    """So many operations of "int16", "float32" or "bfloat16" in our kernels' registers; none without kernels."""
    if importlib.util.find_spec("mrtkern._C") is None:
        return []
    from mrtkern import _C

    run = partial(_C.multiply_only, kind, flops, torch.get_num_threads())
    return [Competitor(PEAK, run, note=f"the operations in {kind} registers, nothing loaded", has_memory=False)]


def cache_bytes() -> int:
    """Size of the last-level cache, as the kernel tells it."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=ASSUMED_CACHE)


class Flush:
    """Empties the caches by reading twice their size: every competitor starts from memory, whoever ran before it."""

    def __init__(self) -> None:
        self.buffer = torch.ones(2 * cache_bytes() // 8, dtype=torch.int64)

    def __call__(self) -> None:
        (read_compare if os.name == "posix" else read_sum)(self.buffer)  # the first leaves OpenMP asleep


@dataclass(frozen=True)
class Roofline:
    """The fastest reader and the fastest product of this machine."""

    reader: str
    dtype: torch.dtype

    @classmethod
    def choose(cls, rounds: int) -> Roofline:
        """Run all of them interleaved and keep the fastest of each kind by its median."""
        buffer = torch.ones(max(READ_BYTES, 4 * cache_bytes()) // 8, dtype=torch.int64)
        found = {name: Competitor(name, partial(read, buffer)) for name, read in READERS.items()}
        dtypes = {f"product {dtype}": dtype for dtype in (torch.float32, torch.bfloat16)}
        found |= {name: Competitor(name, _product(dtype)) for name, dtype in dtypes.items()}
        interleave(found.values(), 1)  # first calls create threads and fill instruction caches
        seconds = {name: Spread.of(times).median for name, times in interleave(found.values(), rounds).items()}
        return cls(min(READERS, key=seconds.__getitem__), dtypes[min(dtypes, key=seconds.__getitem__)])

    def competitors(self, x: Tensor) -> list[Competitor]:
        """Reading x, and the product."""
        read = Competitor(
            READ, partial(READERS[self.reader], x), note=f"{self.reader}, every byte once", has_memory=False
        )
        dtype = str(self.dtype).removeprefix("torch.")
        note = f"{PRODUCT_SIZE}³ {dtype} matrix product"
        return [read, Competitor(PRODUCT, _product(self.dtype), note=note, has_memory=False)]

    @staticmethod
    def seconds(measured: Mapping[str, list[float]], read_bytes: int, nbytes: int, flops: int) -> list[float]:
        """The least time of a call in each round, where reading `read_bytes` took measured[READ]."""
        rounds = zip(measured[READ], measured[PRODUCT], strict=True)
        return [max(nbytes * read / read_bytes, flops * product / PRODUCT_FLOPS) for read, product in rounds]


PRODUCT_FLOPS = 2 * PRODUCT_SIZE**3


def _product(dtype: torch.dtype) -> Callable[[], Tensor]:
    factor = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE).to(dtype)
    return lambda: factor @ factor
