"""Groups of up to 4,096 rows: one call of csrc/facility_location/cpu.cpp for all of them, each by one thread.

Reads  x [T, D] once.   Writes ids, gains, share [sum of k], owner [T] and five numbers per group.
Idea   normalise, round, multiply, quantise and all greedy steps of a group without leaving the cache for N <= 256.
"""

from __future__ import annotations

import torch

import mrtkern._C as _C
from mrtkern import _device
from mrtkern.ops.facility_location import grouped
from mrtkern.ops.facility_location.ground import Features, Groups
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks


def memory(problem: Problem, threads: int) -> int:
    """Bytes beyond inputs and results: per thread the packed rows, the pairs and vectors of the largest group."""
    rows, D = (problem.largest or 0) + 32, problem.D + 32
    return threads * (2 * rows * D + 2 * rows * rows + 96 * D + 90 * rows)


def forward(ground: Features | Groups, rule: Rule) -> Picks:
    """All groups, or the only one."""
    threads = torch.get_num_threads()
    _device.fits(ground.caller.subject, memory(Problem.of(ground, rule), threads), ground.x.device)
    call = grouped.Call(ground, rule)
    bad = _C.facility_location_grouped(call.problem(_C), call.result(_C), threads)
    if bad >= 0:
        ground.refuse_not_finite(bad, bad + 1)
    return call.picks(int(call.results.kept.sum()))
