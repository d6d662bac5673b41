"""facility_location on the CPU: one call of csrc/facility_location/cpu.cpp for all groups, each group by one thread.

Reads  x [T, D] once.   Writes ids, gains, share [sum of k], owner [T] and five numbers per group.
Idea   normalise, round, multiply, quantise and all greedy steps of a group without leaving the cache for N <= 256.
Sums   integers: any order gives the same bits.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _check, lattice
from mrtkern.ops.facility_location.problem import Inputs, Problem
from mrtkern.ops.facility_location.selection import Picks

LIMITS = f"groups of up to {_C.LARGEST_GROUP:,} rows, without targets, start and mask"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not(problem: Problem) -> str | None:
    if problem.device != "cpu":
        return f"needs a CPU tensor, got one on {problem.device}"
    if problem.kind == "similarity":
        return "needs features: a given similarity matrix runs in the reference"
    if problem.options:
        return f"takes no {', '.join(problem.options)}"
    if problem.dtype not in DTYPES:
        return f"needs float32, bfloat16 or float16, got {problem.dtype}"
    if problem.largest is not None and problem.largest > _C.LARGEST_GROUP:
        return f"takes groups of up to {_C.LARGEST_GROUP} rows, got {problem.largest}"
    needed, machine = memory(problem, torch.get_num_threads()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > machine:
        return f"needs {needed} bytes of memory for its threads, this machine has {machine}"
    return None


def memory(problem: Problem, threads: int) -> int:
    """Bytes beyond inputs and results: per thread the packed rows, the pairs and vectors of the largest group."""
    rows, D = (problem.largest or 0) + 32, problem.D + 32
    return threads * (2 * rows * D + 2 * rows * rows + 96 * D + 90 * rows)


def forward(inputs: Inputs) -> Picks:
    x = inputs.x
    offsets, k, key = inputs.offsets.contiguous(), inputs.k.contiguous(), inputs.group_key.contiguous()
    weight, quality, bonus, given = (
        None if value is None else value.contiguous()
        for value in (inputs.weight, inputs.quality, inputs.bonus, inputs.given)
    )
    B, total = len(k), int(k.sum())
    ids, gains, share = k.new_empty(total), k.new_empty(total), torch.empty(total, dtype=torch.float32)
    kept, value, bound, random, effective = (k.new_empty(B) for _ in range(5))
    owner = k.new_empty(x.shape[0])
    results = (ids, gains, share, kept, value, bound, random, effective, owner)
    bad = _C.facility_location_grouped(
        x.data_ptr(), DTYPES[x.dtype], x.stride(0), x.stride(1), x.shape[1], offsets.data_ptr(), B, k.data_ptr(),
        _address(weight), _address(quality), _address(bonus), _address(given), key.data_ptr(), inputs.metric,
        lattice.radius(x.shape[1]), inputs.fill, inputs.seed, inputs.first_row,
        [result.data_ptr() for result in results], torch.get_num_threads(),
    )  # fmt: skip
    if bad >= 0:
        _check.finite_rows(inputs.subject, x[bad : bad + 1], inputs.first_row + bad)
    ends = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    if inputs.fill == "none" and int(ends[-1]) < total:
        places = torch.arange(total)
        is_used = places < torch.repeat_interleave(k.cumsum(0) - k + kept, k, output_size=total)
        ids, gains, share = ids[is_used], gains[is_used], share[is_used]
    return Picks(ids, gains, ends, value, bound, random, effective, owner, share)


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()
