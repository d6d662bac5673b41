"""What the report on machine code compiles: the ways in which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mrtkern._triton.launches import Launch
from mrtkern._triton.targets import TARGETS


@dataclass(frozen=True)
class Signature:
    """One way a kernel is launched, compiled without a device for `targets` and held to limits.

    types: argument -> Triton type ("*bf16", "i32", "tensordesc<bf16[128, 64]>"), without the constants; aligned:
    arguments that are multiples of 16, as addresses and sizes of aligned inputs are. launch: further constants and
    options that depend on the architecture. has_matrix: 16-bit products, which must run on matrix units.
    has_wide_loads: inputs are aligned, so that hot loops must load 16 bytes at a time.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    launch: Callable[[str], Launch] | None = None
    has_matrix: bool = False
    has_wide_loads: bool = False
    targets: tuple[str, ...] = TARGETS
