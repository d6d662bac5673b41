"""hidden @ weight.T, a chunk of rows at a time: the only loop in which the two are multiplied.

    z = hidden[rows] weight^T + bias       [C, V], in a buffer that every chunk uses again
    step(z, dz, chunk)                     the caller reads z, and writes dL/dz where gradients are wanted
    dh[rows] = dz weight,   dW += dz^T hidden[rows],   db += sum of dz

dz is z where products take it as it is, otherwise a second buffer in their type: rounded as it is written, it is moved
once less.

The products are those of `tiles` on the CPU and of `library` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, slice], None]  # (z [C, V], dz [C, V], which may be z, rows of this chunk)


class Products(Protocol):
    """What multiplies: `tiles.Products` or `library.Products`."""

    logits_type: torch.dtype
    gradient_type: torch.dtype  # of dz as it is multiplied

    def factor(self, x: Tensor) -> Tensor: ...
    def logits(self, z: Tensor, h: Tensor) -> None: ...
    def hidden_gradient(self, out: Tensor, dz: Tensor) -> None: ...
    def add_weight_gradient(self, total: Tensor, dz: Tensor, h: Tensor, is_first: bool) -> None: ...
    def add_bias_gradient(self, total: Tensor, dz: Tensor) -> None: ...


@dataclass(frozen=True)
class Gradients:
    """Of hidden [T, D], weight [V, D], bias [V] in the summing type, where they were asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def room(
        cls, hidden: Tensor, V: int, wide: torch.dtype, needs: tuple[bool, bool, bool], has_all: bool
    ) -> Gradients:  # fmt: skip
        """Zeros where sums begin, and for hidden where rows are left out."""
        room = hidden.new_empty if has_all else hidden.new_zeros
        dh = room(hidden.shape, dtype=wide) if needs[0] else None
        dW = hidden.new_empty((V, hidden.shape[1]), dtype=wide) if needs[1] else None
        return cls(dh, dW, hidden.new_zeros(V, dtype=wide) if needs[2] else None)


def run(
    products: Products, hidden: Tensor, V: int, rows: Tensor | None, step: Step, *,
    size: int, wide: torch.dtype, needs: tuple[bool, bool, bool] = (False, False, False), keeps: Tensor | None = None,
) -> Gradients:  # fmt: skip
    """Call `step` on each chunk of `size` rows and collect the gradients of what it leaves in z.

    rows [T'] int64: the rows of hidden that count, ascending; None: all. keeps [T] bool: the others are multiplied as
    zeros, whatever they hold. `wide` is the type of sums.
    """
    T = hidden.shape[0] if rows is None else rows.shape[0]
    z = hidden.new_empty((max(size, 1), V), dtype=products.logits_type)  # [C, V]
    is_one = not any(needs) or products.gradient_type == z.dtype
    dz = z if is_one else torch.empty_like(z, dtype=products.gradient_type)
    made = Gradients.room(hidden, V, wide, needs, rows is None)
    for t in range(0, T, max(size, 1)):
        chunk = slice(t, min(t + size, T))
        which = chunk if rows is None else rows[chunk]
        h = products.factor(hidden[which] if keeps is None else hidden[which].masked_fill(~keeps[which, None], 0))
        count = len(h)
        products.logits(z[:count], h)
        step(z[:count], dz[:count], chunk)
        if any(needs):
            _collect(products, made, dz[:count], h, which, t == 0)
    if made.weight is not None and not T:
        made.weight.zero_()
    return made


def _collect(
    products: Products, made: Gradients, dz: Tensor, h: Tensor, which: slice | Tensor, is_first: bool
) -> None:  # fmt: skip
    """Add what a chunk has to the gradients."""
    if isinstance(which, slice) and made.hidden is not None:
        products.hidden_gradient(made.hidden[which], dz)
    elif made.hidden is not None:
        part = made.hidden.new_empty(h.shape)
        products.hidden_gradient(part, dz)
        made.hidden[which] = part
    if made.weight is not None:
        products.add_weight_gradient(made.weight, dz, h, is_first)
    if made.bias is not None:
        products.add_bias_gradient(made.bias, dz)
