"""What a pass over a linear head moves on a device, counted, and how many rows a chunk has for it.

For T rows in T / C chunks of C, with factors of w bytes and logits of 4 bytes:

    pass                    operations   bytes
    logits                  2 T V D      w V D T/C weight, w T D hidden, 4 T V written
    loss and dz             -            4 T V read, for dz 4 T V again where the rows in flight exceed the L2 cache,
                                         w T V written
    gradient of hidden      2 T V D      w V D T/C weight, w T V dz, 4 T D written
    gradient of weight      2 T V D      8 V D (T/C - 1) + 4 V D of the sum, w T V dz, w T D hidden
    the factor of backward  -            4 V D + 4 T D read, as many in the types of weight and hidden written

Nothing is multiplied during the second and the last, so their bytes are paid in full. A stream hides behind the
operations of its product where it takes less time: at F operations per byte of memory (`BALANCE`), that of the sum of
dW, the heaviest, takes 4 F / C of it. C as large as the room allows is therefore best; the room is that of the sum
itself, so that logits never more than double what the gradients need.

By this count a step of the head of Llama 3 8B in bfloat16 (T 8,192, D 4,096, V 128,256; chunks of 2,816) computes 25.8
Tflop and moves 39.3 GB, 13.9 of them while nothing is multiplied; inputs and gradients alone are 2.2 GB. On an H100
that is 26.1 ms at 989 TFLOP/s and 4.1 ms at 3.35 TB/s. With dz converted afterwards, the factor and the rounding of
backward in two passes and four chunks it was 58.5 GB, 26.7 of them alone, 8.0 ms. `linear_log_prob` at V 131,072: 8.9
ms of products and 1.3 ms alone forward, 35.6 and 5.5 in all. How near products come to the first number, and how much
of their streams hides, only a device can say.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from mrtkern.ops.linear_cross_entropy.problem import Problem

BALANCE = 295  # operations in 16-bit types while a byte moves: an H100, 989 TFLOP/s at 3.35 TB/s
IN_FLIGHT = 132  # rows that an H100 reads at once, one on each multiprocessor
L2_BYTES = 50 << 20  # of an H100
DEVICE_ROWS = (2048, 4096)  # of a chunk: dW streams for 58 % of the time of its product, and for 29 %
DEVICE_BYTES = 1 << 30  # of logits and dz, from 2,048 rows on, where no gradient of weight takes more
TILE = 128  # rows of a tile of a product: a chunk is full of them


class Traffic(NamedTuple):
    """Bytes of each pass."""

    logits: int
    loss: int
    hidden_gradient: int
    weight_gradient: int
    factor: int

    @property
    def alone(self) -> int:
        """Of passes during which nothing is multiplied."""
        return self.loss + self.factor


def traffic(problem: Problem, size: int, product: torch.dtype) -> Traffic:
    """Bytes that loss and gradients of a problem move in chunks of `size` rows, logits being float32."""
    T, V, D, w = problem.T, problem.V, problem.D, product.itemsize
    chunks = math.ceil(T / size) if size else 0
    is_twice = IN_FLIGHT * V * 4 > L2_BYTES
    of_hidden, of_weight, _ = problem.needs
    loss = 4 + (4 * is_twice + w if problem.wants_grad else 0)
    sums = 8 * chunks - 4 if chunks else 0
    ends = [(4 + to.itemsize) * rows * D for rows, to in ((T, problem.hidden), (V, problem.weight)) if to.itemsize < 4]
    return Traffic(
        logits=w * V * D * chunks + w * T * D + 4 * T * V,
        loss=loss * T * V,
        hidden_gradient=of_hidden * (w * V * D * chunks + w * T * V + 4 * T * D),
        weight_gradient=of_weight * (sums * V * D + w * T * V + w * T * D),
        factor=sum(ends) if problem.wants_grad else 0,
    )


def device_rows(problem: Problem, product: torch.dtype) -> int:
    """Rows of a chunk on a device: as many as there is room for within DEVICE_ROWS, about equally many in all."""
    least, most = DEVICE_ROWS
    each = problem.V * (4 + (product.itemsize if product.itemsize < 4 and problem.wants_grad else 0))
    room = max(DEVICE_BYTES, 4 * problem.V * problem.D * problem.needs[1])
    best = min(max(_whole(room // each), least), most)
    chunks = math.ceil(problem.T / best) or 1
    return min(_whole(math.ceil(problem.T / chunks)), problem.T)


def _whole(rows: int) -> int:
    return -(-rows // TILE) * TILE
