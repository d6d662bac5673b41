"""Products of a head by torch: on a device, and wherever the reference runs. The same functions as in `tiles`.

Sums: as wide as `product` and in the library's own order. Factors of 16 bits leave float32 results where torch can ask
for them; elsewhere their products are rounded to 16 bits before they are added.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch adds products of 16-bit factors to a float32 sum there, without rounding them first.

    Found out by adding one: the overload was there for some versions before it took such a sum.
    """
    if not hasattr(torch.ops.aten.addmm, "dtype_out"):
        return False
    total = torch.zeros((16, 16), dtype=torch.float32, device=device)
    factor = total.to(dtype)
    try:
        torch.addmm(total, factor, factor, out_dtype=total.dtype, out=total)
    except RuntimeError:
        return False
    return True


class Products:
    """The products of one head in `product`, to which its weight is converted once: blocks would idle a device."""

    def __init__(self, weight: Tensor, bias: Tensor | None, product: torch.dtype) -> None:
        self.weight, self.bias, self.product = weight.to(product), bias, product
        is_wide = product.itemsize > 2 or not adds_wide(weight.device, product)
        self.logits_type = product if is_wide else torch.float32

    def factor(self, x: Tensor) -> Tensor:
        """Hidden states or dz as they are multiplied."""
        return x.to(self.product)

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
        else:
            total.copy_(a @ b) if is_first else total.add_(a @ b)
