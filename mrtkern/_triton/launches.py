"""Launch parameters: how large tiles are, from one table by architecture, type and size class.

Nothing is tuned while a program runs. Fusing of multiplication and addition is always stated: `Launch.options` turns it
on, kernels whose bits are defined turn it off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mrtkern._triton.targets import SHARED


@dataclass(frozen=True)
class Launch:
    """Sizes of a tile [BLOCK_M, BLOCK_N], of a step BLOCK_D of the sum, warps, steps in flight, and at most how many
    registers a thread takes (None: as many as the compiler likes)."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None

    @property
    def blocks(self) -> dict[str, int]:
        """Constants of the kernel."""
        return {"BLOCK_M": self.BLOCK_M, "BLOCK_N": self.BLOCK_N, "BLOCK_D": self.BLOCK_D}

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler."""
        found = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return found if self.maxnreg is None else {**found, "maxnreg": self.maxnreg}

    def tiles(self, M: int, N: int) -> int:
        """Tiles of an [M, N] output."""
        return -(-M // self.BLOCK_M) * -(-N // self.BLOCK_N)

    def padded(self, M: int, N: int) -> int:
        """Scores of these tiles."""
        return self.tiles(M, N) * self.BLOCK_M * self.BLOCK_N


# Bytes of an operand -> tile of a product where there are many, by architecture, and where there are few. Operands in
# flight stay within SHARED; accumulators take at most 128 registers of a thread, on sm_100 64, where they pass through
# tensor memory.
LARGE = {
    2: {
        "sm_80": Launch(128, 128, 64, 8, 3),
        "sm_86": Launch(128, 128, 32, 8, 3),
        "sm_90": Launch(128, 256, 64, 8, 3),
        "sm_100": Launch(128, 128, 64, 8, 4),
        "sm_120": Launch(128, 128, 32, 8, 3),
        "gfx942": Launch(128, 128, 64, 8, 2),
    },
    4: dict.fromkeys(SHARED, Launch(128, 128, 16, 8, 2)),
}
# Tiles of 16-bit products that are consumed and not just stored: small enough for two programs on a multiprocessor, if
# threads do with 128 registers, so that one's epilogue hides behind the other's products, which are short.
CONSUMED = {
    "sm_80": Launch(128, 128, 32, 8, 4),
    "sm_86": Launch(128, 128, 32, 8, 3),
    "sm_90": Launch(128, 128, 64, 8, 3),
    "sm_100": Launch(128, 128, 64, 8, 3),
    "sm_120": Launch(128, 128, 32, 8, 3),
    "gfx942": Launch(128, 128, 64, 8, 2),
}
CONSUMERS = (("sm_80", "gfx942"), ("sm_90", "sm_100"), ("sm_120",))  # targets whose kernels take the same arguments
SMALL = {2: Launch(64, 64, 64, 4, 3), 4: Launch(64, 64, 16, 4, 2)}
PADDED = 1.5  # times the scores of small tiles, padding included, that large ones may make: these read half as much


def product_launch(
    arch: str, dtype: torch.dtype, M: int, N: int, B: int = 1, programs: int = 1, is_stored: bool = True
) -> Launch:
    """The tile of B products of [M, D] and [N, D]: the large one where there are enough for `programs` at once, and
    little of it lies beside the scores."""
    large = LARGE[dtype.itemsize][arch] if is_stored or dtype.itemsize == 4 else CONSUMED[arch]
    small = SMALL[dtype.itemsize]
    is_filled = large.padded(M, N) <= PADDED * small.padded(M, N)
    return large if is_filled and B * large.tiles(M, N) >= programs else small
