"""facility_location on the CPU: small groups together, everything else one problem at a time.

    groups      up to 4,096 rows each, in the cache
    oracles     one large set of rows, a matrix or a graph: lazy greedy over gains that are computed, read or listed
Sums are integers: any order gives the same bits.
"""

from __future__ import annotations

import torch

import mrtkern._C as _C
from mrtkern import _device
from mrtkern.ops.facility_location import grouped, large
from mrtkern.ops.facility_location.cpu import groups, oracles, split
from mrtkern.ops.facility_location.ground import Features, Ground, Groups
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks

MOST_ROWS = 2**31 - 64  # row numbers are 32 bits wide inside
LIMITS = f"up to {MOST_ROWS:,} candidates and rows"


def why_not(problem: Problem) -> str | None:
    if reason := _device.not_cpu(problem.device):
        return reason
    if issubclass(problem.form, (Features, Groups)) and (reason := _device.not_narrow(problem.dtype)):
        return reason
    if max(problem.largest or 0, problem.M) > MOST_ROWS:
        return f"takes {LIMITS}, got {max(problem.largest or 0, problem.M)}"
    return None


def is_small(problem: Problem) -> bool:
    """Whether the kernels for groups take it."""
    return grouped.why_not(problem, _C.LARGEST_GROUP) is None


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and results."""
    return groups.memory(problem, torch.get_num_threads()) if is_small(problem) else oracles.memory(problem)


def forward(problem: Problem, ground: Ground, rule: Rule) -> Picks:
    if is_small(problem) and isinstance(ground, (Features, Groups)):
        return groups.forward(ground, rule)
    if isinstance(ground, Groups):
        return split.forward(problem, ground, rule)
    return large.Call(ground, rule, oracles.ENGINE).picks()
