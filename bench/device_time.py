"""Time on a GPU, in two numbers: of a call's kernels by the device's clock, of the host that launches them by its own.

The device sleeps before the call that it times, for longer than the host needs, so that every kernel is waiting when
its turn comes: what is timed are kernels and not the pauses between their launches. A call is made anew before each
measurement, so that what it destroys is copied outside of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.harness import stopwatch

Maker = Callable[[], Callable[[], Any]]  # makes what one call needs, gives the call
FLUSHED = 512 << 20  # bytes written before each call: more than any L2 cache
CYCLES = 2e9  # of a device's clock in a second, at most; a slower one sleeps longer
LEAST_LEAD = 1e-3  # seconds
LEAD = 2  # times the seconds of the host
HOST_CALLS = 5
ACTIVITIES = (torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA)
LONGEST_NAME = 80  # of a kernel: templates have names of kilobytes


def again(run: Callable[[], Any]) -> Maker:
    """The maker of a call that destroys nothing."""
    return lambda: run


@dataclass(frozen=True)
class Kernels:
    """What one call ran on the device, the longest first: name -> (microseconds, launches)."""

    found: dict[str, tuple[float, int]]

    @property
    def launches(self) -> int:
        """How many in all, copies and fills included."""
        return sum(count for _, count in self.found.values())


@dataclass(frozen=True)
class Timer:
    """How calls are timed and watched; what a machine cannot tell is None."""

    seconds: Callable[[Maker, float], float]  # of the kernels of one call, which the host launches in so many seconds
    host: Callable[[Maker], float]  # seconds until a call returns
    kernels: Callable[[Maker], Kernels | None]
    peak: Callable[[Maker], float | None]  # MiB beyond the inputs, results included


def _device_seconds(make: Maker, host: float) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run = make()
    torch.empty(FLUSHED, dtype=torch.int8, device="cuda").zero_()
    torch.cuda._sleep(int(max(LEAST_LEAD, LEAD * host) * CYCLES))
    begin.record()
    result = run()
    end.record()
    end.synchronize()
    del result
    return float(begin.elapsed_time(end)) * 1e-3


def _host_seconds(make: Maker) -> float:
    """The median of a few calls, each to an idle device."""
    found = []
    for _ in range(HOST_CALLS):
        run = make()
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = run()
        found.append(time.perf_counter() - start)
        del result
    torch.cuda.synchronize()
    return statistics.median(found)


def _device_kernels(make: Maker) -> Kernels | None:
    """None where the profiler does not work: times are worth having without it."""
    try:
        return _profiled(make())
    except (RuntimeError, AssertionError):
        return None


def _profiled(run: Callable[[], Any]) -> Kernels:
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=list(ACTIVITIES)) as profiler:
        run()
        torch.cuda.synchronize()
    found: dict[str, tuple[float, int]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent, count = found.get(event.name[:LONGEST_NAME], (0.0, 0))
            found[event.name[:LONGEST_NAME]] = spent + event.time_range.elapsed_us(), count + 1
    return Kernels(dict(sorted(found.items(), key=lambda entry: -entry[1][0])))


def _device_peak(make: Maker) -> float:
    run = make()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    del result
    return (torch.cuda.max_memory_allocated() - before) / 2**20


ON_DEVICE = Timer(_device_seconds, _host_seconds, _device_kernels, _device_peak)
ON_HOST = Timer(
    seconds=lambda make, host: stopwatch(make()),
    host=lambda make: stopwatch(make()),
    kernels=lambda make: None,
    peak=lambda make: None,
)
