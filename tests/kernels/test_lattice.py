"""The quantiser: exact where it says so, whatever the library underneath does."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from mrtkern import lattice


def test_square_roots_are_correctly_rounded() -> None:
    x = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 40
    assert lattice.square_root(x).tolist() == [math.sqrt(v) for v in x.tolist()]


def test_quotients_are_rounded_once() -> None:
    lengths = torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    expected = [float(Fraction(4095.5) / Fraction(v)) for v in lengths.tolist()]
    assert lattice.quotients(4095.5, lengths).tolist() == expected
    assert lattice.quotients(1.0, torch.zeros(1, dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_widening_is_exact(dtype):
    """Every pattern of bits of 16, of 32 the ends of every exponent; the conversion of torch is exact, too."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    x = (
        torch.cat([bits << 16, bits << 16 | 0xFFFF]).view(torch.float32)
        if dtype == torch.float32
        else bits.to(torch.int16).view(dtype)
    )
    x = x[torch.isfinite(x)]
    assert torch.equal(lattice.wide(x), x.double())
