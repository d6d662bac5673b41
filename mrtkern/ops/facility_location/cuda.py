"""facility_location on a GPU: a launch of csrc/facility_location/cuda.cuh for all groups, a warp or a block for each.

Reads  x [T, D] from memory once.   Writes ids, gains, share [sum of k], owner [T] and five numbers per group.
Idea   a group stays on the chip from its features to its picks: for 10,000 groups of 16 rows one launch instead of some
       thirty tensor operations over [B, 16, 16], each of which would read and write what this keeps in shared memory. A
       warp takes a group of up to 32 rows; larger ones among them are a second launch, of blocks.
Sums   integers: any order gives the same bits.
Waits  once after the kernel, for the number of the first row that is not finite and the number of ids.
"""

from __future__ import annotations

import torch

import mrtkern._cuda as _cuda
from mrtkern import _device
from mrtkern.ops.facility_location import grouped
from mrtkern.ops.facility_location.ground import Features, Groups
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks

DEVICES = ("cuda",)  # device types that the kernels run on
HOST = (0, 0)  # device and stream of CPU tensors: only the emulated kernels of the tests take them
LIMITS = grouped.LIMITS.format(_cuda.LARGEST_GROUP)


def why_not(problem: Problem) -> str | None:
    if problem.device not in DEVICES:
        return f"needs a CUDA tensor, got one on {problem.device}"
    return _device.too_old(problem.capability) or grouped.why_not(problem, _cuda.LARGEST_GROUP)


def memory(problem: Problem, device: int) -> int:
    """Bytes beyond inputs and results, on the device of that number: a number and a place per group, and where shared
    memory is too small for the largest one, its lattice rows and pairs as often as blocks run at a time."""
    return 16 * problem.B + 8 + _cuda.facility_location_workspace(problem.B, problem.largest or 0, problem.D, device)


def forward(problem: Problem, ground: Features | Groups, rule: Rule) -> Picks:
    x, k = ground.x, rule.k
    device, stream = (x.device.index, torch.cuda.current_stream(x.device).cuda_stream) if x.is_cuda else HOST
    _device.fits(ground.caller.subject, memory(problem, device), x.device)
    call = grouped.Call(ground, rule)
    slots = k.cumsum(0) - k  # [B] where each group's picks begin
    bad_row = k.new_full((1,), -1)  # as an unsigned number the largest
    workspace = torch.empty(
        _cuda.facility_location_workspace(problem.B, ground.largest, problem.D, device),
        dtype=torch.uint8,
        device=x.device,
    )
    scratch = _cuda.DeviceScratch(slots=slots.data_ptr(), bad_row=bad_row.data_ptr(), workspace=workspace.data_ptr())
    _cuda.facility_location_grouped(
        call.problem(_cuda),
        call.result(_cuda),
        scratch,
        ground.largest,
        _cuda.CudaStream(device=device, address=stream),
    )
    bad, kept = torch.stack([bad_row[0], call.results.kept.sum()]).tolist()
    if bad >= 0:
        ground.refuse_not_finite(bad, bad + 1)
    return call.picks(kept)
