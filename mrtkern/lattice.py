"""The int16 lattice on which every selection is computed: the reference definition of the quantiser.

A row is scaled to length r = 4096 - sqrt(D + 9) / 2 and rounded to integers q, components beyond 2048 to even ones (so
that float16 holds them). At most three components exceed 2048, so rounding moves the row by at most sqrt(D + 9) / 2 and
|q| <= 4096: by Cauchy-Schwarz every partial dot product of two rows is an integer of at most 2**24, exact in int32, in
float32 and in float16 products with float32 sums, in any order. That is why picks are the same bits on every machine.

Everything here is plain IEEE float64, one operation at a time: any backend can repeat it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

STEPS = 32767  # fixed-point value of the largest pair: 15 bits, so that differences stay in int16
LANES = 16  # interleaved partial sums of a squared norm


def radius(D: int) -> float:
    """Length to which rows of D features are scaled before rounding."""
    return 4096.0 - math.sqrt(D + 9.0) / 2.0


def unit_square(D: int) -> int:
    """The dot product that stands for cosine 1."""
    return round(radius(D) ** 2)


def fine_radius(D: int) -> float:
    """Length of rows on the finer lattice of `neighbors`: |q| <= 32767, so dot products are exact in int32 only."""
    return 32767.0 - math.sqrt(D) / 2.0


def cosine_error(D: int) -> float:
    """Largest |dot / r**2 - cosine| over all pairs of rows: both were moved by at most sqrt(D + 9) / 2."""
    moved = math.sqrt(D + 9.0) / (2.0 * radius(D))
    return 2.0 * moved + moved**2 + 1.0 / unit_square(D)


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (float32, float64) as significand · 2**exponent: integers in float64, int32. Made of bits, because arithmetic
    may flush subnormals to 0 (torch.set_flush_denormal)."""
    integer, fraction = (torch.int64, 52) if x.dtype == torch.float64 else (torch.int32, 23)
    bits = x.contiguous().view(integer)
    biased = (bits >> fraction) & ((1 << (x.element_size() * 8 - 1 - fraction)) - 1)
    significand = (bits & ((1 << fraction) - 1)) + ((biased > 0).to(integer) << fraction)  # subnormals: no leading bit
    lowest = {torch.float32: -149, torch.float64: -1074}[x.dtype]
    return torch.where(bits < 0, -significand, significand).double(), (biased.clamp(min=1) - 1 + lowest).int()


def wide(x: Tensor) -> Tensor:
    """x (finite) in float64, exact, subnormals of the narrower types included."""
    return x if x.dtype == torch.float64 else torch.ldexp(*parts(x.float()))


def scaled(x: Tensor) -> Tensor:
    """float64 rows times powers of two that bring the largest component to about 1: squares can no longer overflow."""
    if not x.numel():
        return x
    significand, exponent = parts(x)
    above = torch.where(significand == 0, -2048, torch.frexp(significand).exponent + exponent)
    shift = exponent - above.amax(dim=1, keepdim=True)
    half = shift // 2  # in two steps: 2.0**shift alone can vanish
    powers = torch.ldexp(torch.ldexp(significand, half), shift - half)
    return torch.where(torch.isfinite(x), powers, x)  # what is not finite is refused later, as it is


def to_float32(x: Tensor) -> Tensor:
    """float64 rows scaled, then rounded; others as they are."""
    return scaled(x).float() if x.dtype == torch.float64 else x


def square_root(x: Tensor) -> Tensor:
    """Correctly rounded float64 square roots of x. On CPUs torch 2.13 takes MKL's, which are off by one unit for half
    of all numbers; numpy takes the processor's."""
    return torch.from_numpy(np.asarray(np.sqrt(x.numpy()))) if x.device.type == "cpu" else x.sqrt()


def squared_norms(x: Tensor) -> Tensor:
    """|x|**2 of each row of x [T, D], float64 [T]."""
    return row_dots(x, x)


def row_dots(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> of each row of x and y [T, D], float64 [T]: 16 interleaved lanes ascending, then lanes by halves."""
    lanes = torch.zeros((x.shape[0], LANES), dtype=torch.float64, device=x.device)
    for d in range(0, x.shape[1], LANES):
        block = wide(x[:, d : d + LANES])
        lanes[:, : block.shape[1]] += block * (block if y is x else wide(y[:, d : d + LANES]))
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def quotients(r: float, lengths: Tensor) -> Tensor:
    """r / lengths, rounded once; 0 for length 0. (torch makes a float over a tensor a product with reciprocals.)"""
    return torch.where(lengths > 0, torch.tensor(r, dtype=torch.float64, device="cpu") / lengths, 0.0)


def quantise(x: Tensor) -> Tensor:
    """Rows x [T, D] (float32, bfloat16, float16) on the lattice, int16 [T, D]. A zero row stays zero."""
    norms = square_root(squared_norms(x))
    scale = quotients(radius(x.shape[1]), norms)
    v = wide(x) * scale[:, None]
    return torch.where(v.abs() > 2048, 2 * torch.round(v / 2), torch.round(v)).to(torch.int16)


def quantise_fine(x: Tensor, lengths: Tensor) -> Tensor:
    """Rows x [T, D] times fine_radius / lengths [T], rounded, int16 [T, D]. A row of length 0 becomes zero."""
    scale = quotients(fine_radius(x.shape[1]), lengths)
    return torch.round(wide(x) * scale[:, None]).to(torch.int16)


def dots(q: Tensor, p: Tensor) -> Tensor:
    """Exact dot products of lattice rows q [M, D], p [N, D], int64 [M, N] (float64 holds every partial sum)."""
    return (q.double() @ p.double().mT).long()
