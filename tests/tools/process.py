"""The compiled kernels as guests: what they need and do in processes and threads that tests start.

`in_child` forks a process that has imported the library and run nothing. So it starts in milliseconds, has no thread of
others, no memory whose reuse would hide use, and chooses its instruction set itself. What it runs is a function at the
top of a test module. Where a call is to be measured, that function prepares it: it makes the inputs, runs something
small, so that nothing is done for the first time, and returns the call.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from bench import worker

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "mrtkern", "tests.tools.process"])
# Chosen by the words in their names, so those of a later operation are taken too. torch.compile starts compilers; what
# measures time is left out, because other tests run beside these; so are large heads, and memory, which no instruction
# set changes.
KERNEL_TESTS = (
    "(cpu or concurrent or number_of_threads or head_products)"
    " and not compile and not opcheck and not ctrl_c and not collapse and not err_by_less and not memory"
    " and not two_to_the_31 and not without_amx"
)
LONGEST = 600  # seconds that a child, a thread or a message may take: only what hangs takes longer
DELAY = 0.1  # seconds: by then the call is in the kernels
# Half a second is promised of a machine that is quiet and not slow. One at a third of that speed passes, too; a call
# that does not notice goes on for many times as long. An interruption that the scheduler delayed is tried again.
HALF_A_SECOND, SLOWEST, TRIES = 0.5, 3, 3
COLLAPSE = 3  # times as long; a thread that waits without sleeping makes the others wait for its whole time slice

needs_peak = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset here"
)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own; an error there is an error here."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        assert receiver.poll(LONGEST), f"no answer within {LONGEST} seconds"
        value, error = receiver.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"the child ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    assert error is None, error
    return value


def _answer(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((function(*arguments), None))
    except BaseException:  # noqa: BLE001  whatever it is, the parent has to say it
        sender.send((None, traceback.format_exc()))


def peak(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Most bytes that a call needs at once beyond its inputs and its results."""
    found = in_child(_peak, prepare, arguments)
    assert isinstance(found, int)
    return found


def _peak(prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> int | None:
    return worker.peak_bytes(prepare(*arguments))


def assert_ctrl_c_returns_within_half_a_second(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
    """However long the call would have gone on, on the slowest machine, at one of several tries."""
    found: list[float] = []
    while not found or found[-1] >= HALF_A_SECOND * SLOWEST:
        assert len(found) < TRIES, found
        found.append(in_child(_interrupted, prepare, arguments))


def _interrupted(prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> float:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    call, pressed = prepare(*arguments), []

    def press() -> None:
        time.sleep(DELAY)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    try:
        call()
    except KeyboardInterrupt:
        return time.monotonic() - pressed[0]
    raise AssertionError("the call is too short to be interrupted")


def holds_in_a_fork(claim: Callable[[], bool]) -> bool:
    """Whether a claim holds in a fork of this very process, in which none of its threads exist."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(LONGEST // 4)  # a call that waits for a thread that is gone
        status = 1
        try:
            status = 0 if claim() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def at_once(calls: Iterable[Callable[[], object]]) -> None:
    """Every call in a thread of its own, until all have returned."""
    callers = [threading.Thread(target=call) for call in calls]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(LONGEST)
        assert not caller.is_alive(), f"no answer within {LONGEST} seconds"


def assert_more_threads_than_cores_do_not_collapse(call: Callable[[], object], rounds: int = 30) -> None:
    """16 threads take no multiple of what the slowest of 1, 2 and 4 take, by the best of as many rounds as it needs:
    beside another busy process most rounds of many threads are slow, and none is where they collapse."""
    before, best = torch.get_num_threads(), dict.fromkeys((1, 2, 4, 16), float("inf"))
    for _ in range(rounds):
        for count in best:
            torch.set_num_threads(count)
            start = time.perf_counter()
            call()
            best[count] = min(best[count], time.perf_counter() - start)
        if best[16] < COLLAPSE * max(best[1], best[2], best[4]):
            break
    torch.set_num_threads(before)
    assert best[16] < COLLAPSE * max(best[1], best[2], best[4]), best
