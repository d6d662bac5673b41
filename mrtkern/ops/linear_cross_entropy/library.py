"""Products of a head by torch: on a device, and wherever the reference runs. The same functions as in `tiles`.

Sums: as wide as `product` and in the library's own order. Factors of 16 bits leave float32 results where torch can ask
for them, added to a sum or at least alone; elsewhere their products are rounded to 16 bits before they are added.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

# Rows of the weight's gradient at a time where a product cannot be added to them in place: what waits to be added is
# small, and a product of 2,048 rows of logits still fills every tile of a device many times.
ADDED_ROWS = 16384


@functools.cache
def adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch adds products of 16-bit factors to a float32 sum there, without rounding them first.

    Found out by adding one: the overload was there for some versions before it took such a sum.
    """
    return hasattr(torch.ops.aten.addmm, "dtype_out") and _runs(
        device, dtype, lambda total, factor: torch.addmm(total, factor, factor, out_dtype=total.dtype, out=total)
    )


@functools.cache
def multiplies_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch leaves products of 16-bit factors in float32 there."""
    return hasattr(torch.ops.aten.mm, "dtype_out") and _runs(
        device, dtype, lambda total, factor: torch.mm(factor, factor, out_dtype=total.dtype, out=total)
    )


def _runs(device: torch.device, dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    total = torch.zeros((16, 16), dtype=torch.float32, device=device)
    try:
        multiply(total, total.to(dtype))
    except RuntimeError:
        return False
    return True


class Products:
    """The products of one head in `product`, to which its weight is converted once: blocks would idle a device."""

    def __init__(self, weight: Tensor, bias: Tensor | None, product: torch.dtype) -> None:
        self.weight, self.bias, self.gradient_type = weight.to(product), bias, product
        has_wide = product.itemsize == 2 and (
            adds_wide(weight.device, product) or multiplies_wide(weight.device, product)
        )
        self.logits_type = torch.float32 if has_wide else product

    def factor(self, x: Tensor) -> Tensor:
        """Hidden states as they are multiplied."""
        return x.to(self.gradient_type)

    def logits(self, z: Tensor, h: Tensor) -> None:
        """z [C, V] = h weight^T + bias."""
        self._multiply(z, h, self.weight.T, is_first=True)
        if self.bias is not None:
            z += self.bias

    def hidden_gradient(self, out: Tensor, dz: Tensor) -> None:
        """out [C, D] = dz weight."""
        self._multiply(out, dz, self.weight, is_first=True)

    def add_weight_gradient(self, total: Tensor, dz: Tensor, h: Tensor, is_first: bool) -> None:
        """total [V, D] += dz^T h, or = where it is the first."""
        self._multiply(total, dz.T, h, is_first)

    def add_bias_gradient(self, total: Tensor, dz: Tensor) -> None:
        """total [V] += sum of dz over its rows."""
        total += dz.sum(0, dtype=total.dtype)

    @staticmethod
    def _multiply(total: Tensor, a: Tensor, b: Tensor, is_first: bool) -> None:
        if a.dtype == total.dtype:
            total.addmm_(a, b, beta=0 if is_first else 1)
        elif adds_wide(total.device, a.dtype):
            torch.addmm(total, a, b, beta=0 if is_first else 1, out_dtype=total.dtype, out=total)
        elif is_first and multiplies_wide(total.device, a.dtype):
            torch.mm(a, b, out_dtype=total.dtype, out=total)
        else:
            for part, rows in zip(total.split(ADDED_ROWS), a.split(ADDED_ROWS), strict=True):
                found = _product(rows, b, total.dtype)
                part.copy_(found) if is_first else part.add_(found)


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """a b in `wide` where torch leaves it so, otherwise in the factors' type."""
    return torch.mm(a, b, out_dtype=wide) if multiplies_wide(a.device, a.dtype) else a @ b
