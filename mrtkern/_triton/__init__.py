"""The tile engine for Triton: what at least two operations use of launches, of tiles and of products.

targets     devices and architectures              launches    sizes of tiles, one table
tiles       order of tiles, products, descriptors  rows        squared lengths, rows on a lattice
signature   what the report on machine code compiles
"""

from mrtkern._triton.launches import CONSUMED, CONSUMERS, LARGE, SMALL, Launch, product_launch
from mrtkern._triton.signature import Signature
from mrtkern._triton.targets import DESCRIPTORS, NAMES, SHARED, TARGETS, arch, multiprocessors, num_warps, on, why_not
from mrtkern._triton.tiles import banded, can_describe, describe, described_product, product

__all__ = [
    "CONSUMED",
    "CONSUMERS",
    "DESCRIPTORS",
    "LARGE",
    "NAMES",
    "SHARED",
    "SMALL",
    "TARGETS",
    "Launch",
    "Signature",
    "arch",
    "banded",
    "can_describe",
    "describe",
    "described_product",
    "multiprocessors",
    "num_warps",
    "on",
    "product",
    "product_launch",
    "why_not",
]
