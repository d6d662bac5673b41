"""facility_location on the CPU: one call of csrc/facility_location/cpu.cpp for all groups, each group by one thread.

Reads  x [T, D] once.   Writes ids, gains, share [sum of k], owner [T] and five numbers per group.
Idea   normalise, round, multiply, quantise and all greedy steps of a group without leaving the cache for N <= 256.
Sums   integers: any order gives the same bits.
"""

from __future__ import annotations

import os

import torch

import mrtkern._C as _C
from mrtkern.ops.facility_location import grouped
from mrtkern.ops.facility_location.ground import Features, Groups
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks

LIMITS = grouped.LIMITS.format(_C.LARGEST_GROUP)


def why_not(problem: Problem) -> str | None:
    if problem.device != "cpu":
        return f"needs a CPU tensor, got one on {problem.device}"
    if reason := grouped.why_not(problem, _C.LARGEST_GROUP):
        return reason
    needed, machine = memory(problem, torch.get_num_threads()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > machine:
        return f"needs {needed} bytes of memory for its threads, this machine has {machine}"
    return None


def memory(problem: Problem, threads: int) -> int:
    """Bytes beyond inputs and results: per thread the packed rows, the pairs and vectors of the largest group."""
    rows, D = (problem.largest or 0) + 32, problem.D + 32
    return threads * (2 * rows * D + 2 * rows * rows + 96 * D + 90 * rows)


def forward(problem: Problem, ground: Features | Groups, rule: Rule) -> Picks:
    call = grouped.Call(ground, rule)
    bad = _C.facility_location_grouped(call.problem(_C), call.result(_C), torch.get_num_threads())
    if bad >= 0:
        ground.refuse_not_finite(bad, bad + 1)
    return call.picks(int(call.results.kept.sum()))
