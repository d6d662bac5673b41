"""Cross-entropy: cases, competitors, the check of their answers, targets.

One call is the loss and the gradient of the logits, a mean over rows of which none is ignored. Losses are compared with
float64 of all rows, gradients on the first and the last rows. The peers may err by a few roundings of their type, the
gradient of ours by two, its loss by 1e-5.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mrtkern
from bench.facility_location import on_one_thread
from bench.harness import Competitor, WrongAnswer, stopwatch
from bench.report import Target
from bench.roofline import Flush
from mrtkern import _dispatch

OP = "cross_entropy"
CHECKED = 64  # rows at either end whose gradient is compared
ROUNDINGS = 16  # a program that is further off than this many roundings of its type is not computing the loss
FLOAT32_SUMS = 2e-5  # what peers may err at least: torch.compile sums a row of 128,256 in float32, 7e-6 off
LOSS = 1e-5  # largest relative error of our loss
COMPILED = "torch.compile"


def _targets() -> tuple[Target, ...]:
    """New buffer and in place, for each shape and type."""
    found: list[Target] = []
    for shape in ("2,048 x 32,000", "512 x 128,256"):
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            case = f"{shape} {dtype}"
            T, V = (int(number.replace(",", "")) for number in shape.split(" x "))
            limit = 0.05 * T * V * size / 2**20
            found += [
                Target(f"{case}, new gradient", ">= 2 x torch.compile", "speedup", 2.0, COMPILED),
                Target(f"{case}, new gradient", "<= 1.05 x the logits, gradient included", "memory", limit),
                Target(f"{case}, in place", ">= 6 x torch.compile", "speedup", 6.0, COMPILED),
                Target(f"{case}, in place", "<= 1 MiB per thread", "memory", float(torch.get_num_threads())),
            ]
    return tuple(found)


TARGETS = _targets()
REASONS: dict[tuple[str, str], str] = {}  # (name of the case, text of the target) -> why it is missed

Inputs = dict[str, Any]  # x: the logits, y: the targets, inplace


def cases() -> list[Any]:
    """The cases made for benchmarks."""
    from mrtkern.ops.cross_entropy.problem import CASES  # here: a child with another revision's mrtkern may lack it

    return [case for case in CASES if "bench" in case.tags]


def make_inputs(case: Any) -> Inputs:
    """What one call gets."""
    problem = case.problem
    targets = torch.randint(0, problem.V, (problem.T,), generator=torch.Generator().manual_seed(1))
    return {"x": case.make_inputs(seed=0)["logits"].detach(), "y": targets, "inplace": problem.inplace}


def work(case: Any) -> tuple[int, int]:
    """Bytes and floating-point operations of one call."""
    return case.problem.bytes, case.problem.flops


def backend(case: Any) -> str:
    """Which backend runs it."""
    return _dispatch.choose(OP, None, case.problem)


def tiny(inputs: Inputs) -> Inputs:
    """The same: torch.compile specialises on sizes, and compiling again would count as memory of the call."""
    return inputs


def with_gradient(x: Tensor, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of the logits."""
    logits = x.detach().requires_grad_()
    loss = forward(logits)
    return loss, torch.autograd.grad(loss, logits)[0]


def ours(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The library's call; in place on a copy of the logits, or the next call would find none."""
    if inputs["inplace"]:
        return prepared(inputs)()
    return with_gradient(inputs["x"], lambda z: mrtkern.cross_entropy(z, inputs["y"]))


def prepared(inputs: Inputs) -> Callable[[], tuple[Tensor, Tensor]]:
    """The library's call; in place on a copy of the logits that is made here, so that a clock need not time it."""
    if inputs["inplace"]:
        return partial(overwritten, inputs["x"].clone(), inputs["y"])
    return partial(ours, inputs)


def overwritten(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits become the gradient."""
    return mrtkern.cross_entropy(x, y, inplace=True), x


@functools.cache
def flush() -> Flush:
    """Empties the caches once more, after the copy that comes before a call in place."""
    return Flush()


def time_in_place(inputs: Inputs, call: Callable[[Tensor, Tensor], Any]) -> float:
    """Seconds of a call in place, its logits made before."""
    x = inputs["x"].clone()
    flush()()
    return stopwatch(partial(call, x, inputs["y"]))


def own(inputs: Inputs) -> list[Competitor]:
    """Ours, and ours on one thread."""
    run = partial(ours, inputs)
    one = partial(on_one_thread, run)
    if not inputs["inplace"]:
        found = [Competitor("mrtkern", run), Competitor("mrtkern, 1 thread", one, has_memory=False)]
    else:
        clock = partial(time_in_place, inputs, overwritten)
        alone = partial(time_in_place, inputs, lambda x, y: on_one_thread(partial(overwritten, x, y)))
        note = "its copy of the logits is not timed; memory beyond that copy"
        found = [
            Competitor("mrtkern", run, clock=clock, note=note),
            Competitor("mrtkern, 1 thread", one, clock=alone, has_memory=False),
        ]
    return found if torch.get_num_threads() > 1 else found[:1]


@functools.cache
def compiled() -> Callable[[Tensor, Tensor], Tensor]:
    """F.cross_entropy for the sizes that come."""
    return torch.compile(lambda x, y: F.cross_entropy(x, y), dynamic=False)


def others(inputs: Inputs) -> list[Competitor]:
    """The peers; none of them writes its gradient over the logits."""
    x, y = inputs["x"], inputs["y"]
    found = [
        Competitor(
            COMPILED,
            partial(with_gradient, x, lambda z: compiled()(z, y)),
            note="F.cross_entropy, forward and backward",
        )
    ]
    if inputs["inplace"]:
        return found
    eager = partial(with_gradient, x, lambda z: F.cross_entropy(z, y))
    found.append(Competitor("torch eager", eager, note="F.cross_entropy"))
    if x.dtype != torch.float32:
        upcast = partial(with_gradient, x, lambda z: F.cross_entropy(z.float(), y))
        found.append(Competitor("upcast", upcast, note="F.cross_entropy of logits.float(), as transformers does"))
    return found


def answer(inputs: Inputs, result: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The loss, and the gradient of the checked rows."""
    loss, gradient = result
    return {"loss": loss.detach(), "gradient": ends(gradient)}


def ends(value: Tensor) -> Tensor:
    """The first and the last rows."""
    return torch.cat([value[:CHECKED], value[-CHECKED:]])


def truth(inputs: Inputs) -> dict[str, Tensor]:
    """The same in float64."""
    x, y = inputs["x"], inputs["y"]
    parts = zip(x.split(CHECKED), y.split(CHECKED), strict=True)
    losses = [F.cross_entropy(rows.double(), labels, reduction="sum") for rows, labels in parts]
    gradient = with_gradient(ends(x).double(), lambda z: F.cross_entropy(z, ends(y), reduction="sum"))[1]
    return {"loss": torch.stack(losses).sum() / len(y), "gradient": gradient / len(y)}


def check(inputs: Inputs, answers: Mapping[str, dict[str, Tensor]]) -> dict[str, str]:
    """The errors of each answer, as text; WrongAnswer when one errs too much. Ours is named "mrtkern"."""
    right = truth(inputs)
    rounding = torch.finfo(inputs["x"].dtype).eps / 2
    found: dict[str, str] = {}
    for name, given in answers.items():
        error = {part: float((given[part] - right[part]).abs().max() / right[part].abs().max()) for part in right}
        if name.startswith("mrtkern"):
            limits = {"loss": LOSS, "gradient": 2 * rounding}
        else:
            limits = dict.fromkeys(right, max(ROUNDINGS * rounding, FLOAT32_SUMS))
        for part, limit in limits.items():
            if not error[part] <= limit:
                raise WrongAnswer(f"the {part} of {name} is off by {error[part]:.2e}, allowed are {limit:.2e}")
        found[name] = f"loss {error['loss']:.0e}, gradient {error['gradient']:.0e}"
    return found
