"""What tests marked `gpu` share: inputs on the device, a process group of one rank, random sizes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

IS_IMITATED = "tests.tools.imitation" in sys.modules
SHAPES = 1 if IS_IMITATED else 1000  # of a stress
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)  # around the tiles of kernels


def placed(inputs: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    """The same arguments there; what wanted a gradient is a leaf again."""
    return {
        name: value.detach().to(device).requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def back(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Results on the CPU."""
    return tuple(value.detach().cpu() for value in values)


@contextlib.contextmanager
def one_rank(folder: Path) -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone."""
    backend = "gloo" if IS_IMITATED else "nccl"
    dist.init_process_group(backend, init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


class Draw:
    """Random choices; the same seed, the same."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, least: int, most: int) -> int:
        """From `least` to `most`."""
        return int(torch.randint(least, most + 1, (), generator=self.generator))

    def size(self, most: int) -> int:
        """One of EDGES half the time, any other otherwise."""
        return min(self.one_of(*EDGES), most) if self.integer(0, 1) else self.integer(1, most)

    def one_of(self, *choices: Any) -> Any:
        """One of them."""
        return choices[self.integer(0, len(choices) - 1)]


@contextlib.contextmanager
def named(shape: object) -> Iterator[None]:
    """A failure inside says of which shape it is."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{shape}: {error}") from error
