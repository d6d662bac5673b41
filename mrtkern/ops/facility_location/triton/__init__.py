"""facility_location for Triton: one large problem, by the greedy loop of the CPU over gains that a device computes.

    kernels     tiles of pairs and lists of pairs       launch    how they are launched
    oracles     what a ground holds and answers         costs     which way to a gain is the shorter, by count
Reads  x, or a matrix or graph of similarities, once.   Writes ids, gains, share, owner.
Idea   gains of all candidates by passes over tiles, of those that lead in batches that fill the device, and once the
       pairs that can still matter are few, from lists of them. Which candidate leads is found on the host, by the heap
       of csrc/facility_location/lazy.h: the same loop, so the same picks.
Sums   integers: any order gives the same bits.
Waits  for each batch of gains.
"""

from __future__ import annotations

from mrtkern import _device, _triton
from mrtkern.ops.facility_location import large
from mrtkern.ops.facility_location.ground import Features, Ground, Groups
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks
from mrtkern.ops.facility_location.triton import oracles
from mrtkern.ops.facility_location.triton.oracles import memory as memory
from mrtkern.ops.facility_location.triton.signatures import SIGNATURES as SIGNATURES

MOST_ROWS = 2**31 - 2**16  # row numbers are 32 bits wide inside, those of whole tiles too
LIMITS = f"one set of rows, a matrix or a graph, of up to {MOST_ROWS:,} candidates and rows"


def why_not(problem: Problem) -> str | None:
    """None when the kernels can run `problem`, otherwise the reason."""
    if reason := _triton.why_not(problem.device, problem.capability):
        return reason
    if "polish" in problem.options:
        return "swaps nothing: it takes no polish"
    if problem.form is Groups:
        return "takes one problem at a time, got groups"
    if problem.form is Features and (reason := _device.not_narrow(problem.dtype)):
        return reason
    if max(problem.largest or 0, problem.M) > MOST_ROWS:
        return f"takes {LIMITS}, got {max(problem.largest or 0, problem.M)}"
    return None


def forward(problem: Problem, ground: Ground, rule: Rule) -> Picks:
    """One problem."""
    del problem
    with _triton.on(rule.k.device):
        return large.Call(ground, rule, oracles.ENGINE).picks()
