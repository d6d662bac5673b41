"""Products of a head on the CPU's tile engine: float32 results, whose bits depend on the numbers multiplied alone.

    logits           z [C, V] = h [C, D] weight [V, D]^T + bias
    hidden_gradient  out [C, D] = dz [C, V] weight
    add_weight_gradient, add_bias_gradient   total += dz^T h, total += sum of dz over its rows

Idea   operands are packed from whatever type and strides they have, a few megabytes at a time: nothing is converted or
       gathered beforehand.
Sums   float32, in chunks that only the length of the sum decides: neither the other rows, their number, the threads nor
       the instruction set changes a bit. With `product` bfloat16 factors are bfloat16, also dz, rounded to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern._device import DTYPES, address

WORKSPACE = _C.MATMUL_WORKSPACE


class Products:
    """The products of one head; `product` is bfloat16, or float32 for exact ones."""

    logits_type = gradient_type = torch.float32

    def __init__(self, weight: Tensor, bias: Tensor | None, product: torch.dtype) -> None:
        self.weight, self.is_half = weight, product == torch.bfloat16
        self.bias = None if bias is None else bias.to(torch.float32).contiguous()
        self.workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device="cpu")

    def factor(self, x: Tensor) -> Tensor:
        """Hidden states as they are multiplied: they are converted as they are packed."""
        return x

    def logits(self, z: Tensor, h: Tensor) -> None:
        """z [C, V] = h weight^T + bias."""
        self._multiply(z, h, self.weight, bias=self.bias)

    def hidden_gradient(self, out: Tensor, dz: Tensor) -> None:
        """out [C, D] = dz weight."""
        self._multiply(out, dz, self.weight.T)

    def add_weight_gradient(self, total: Tensor, dz: Tensor, h: Tensor, is_first: bool) -> None:
        """total [V, D] += dz^T h, or = where it is the first."""
        self._multiply(total, dz.T, h.T, adds=not is_first)

    def add_bias_gradient(self, total: Tensor, dz: Tensor) -> None:
        """total [V] += sum of dz over its rows."""
        z, sizes = (dz.data_ptr(), dz.stride(0)), (len(dz), dz.shape[1])
        _C.add_column_sums(z, sizes, total=total.data_ptr(), threads=torch.get_num_threads())

    def _multiply(self, out: Tensor, a: Tensor, b: Tensor, *, bias: Tensor | None = None, adds: bool = False) -> None:
        """out [M, N] = a [M, K] b [N, K]^T + bias, or += the product."""
        _C.matmul(
            _operand(a), _operand(b), (len(a), len(b), a.shape[1]), out=(out.data_ptr(), out.stride(0)),
            bias=address(bias), adds=adds, is_half=self.is_half,
            workspace=self.workspace.data_ptr(), threads=torch.get_num_threads(),
        )  # fmt: skip


def scales(gradient: Tensor) -> bool:
    """Whether `scaled` takes it."""
    return gradient.dtype == torch.float32


def scaled(gradient: Tensor, factor: Tensor | None, dtype: torch.dtype, in_place: bool) -> Tensor:
    """gradient float32 times a number (None: 1), rounded once to dtype: float32, bfloat16, float16."""
    if dtype == torch.float32 and factor is None:
        return gradient
    gradient, factor = gradient.contiguous(), None if factor is None else factor.to(torch.float32)
    out = gradient if in_place and dtype == torch.float32 else torch.empty_like(gradient, dtype=dtype)
    _C.scale(
        gradient.data_ptr(), out.data_ptr(), DTYPES[dtype], gradient.numel(),
        factor=address(factor), threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


def _operand(x: Tensor) -> tuple[int, str, int, int]:
    return x.data_ptr(), DTYPES[x.dtype], x.stride(0), x.stride(1)
