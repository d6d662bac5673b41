"""The three products inside a linear head on the CPU, each alone, and log-probabilities of few and many rows.

    logits            z [T, V] = h [T, D] weight [V, D]^T
    hidden_gradient   dh [T, D] = dz [T, V] weight
    weight_gradient   dW [V, D] = dz^T h
    log_prob          what a row says, whose bits no other row changes, against the program that promises no such thing

Cases are rows x classes x features. Ours leaves float32, torch's products the type of their factors, both in room made
before. All of every answer is compared with float64. torch's bfloat16 runs a second time in a process whose oneDNN may
not use AMX: its tiles sum in another order than every other instruction, so ours cannot use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mrtkern
from bench import machine
from bench.harness import Competitor, WrongAnswer
from bench.report import Target
from bench.roofline import peak
from bench.worker import NO_AMX, Apart, said
from mrtkern import _dispatch

OP = "head_products"
PARTS = ("logits", "hidden_gradient", "weight_gradient", "log_prob")
TORCH, MASKED, FLOAT32 = "torch", "torch, no AMX", "torch, float32"
ROWS = 256  # of the exact result at a time
UNIT = 2.0**-24  # a rounding of float32
# A float32 sum of K random terms errs by about 0.7 roundings of |a| |b|; of 10^8 sums the worst by 5.7 times as much.
SUMS = 8
LOG_PROB = 1e-5  # what ours promises
ROUNDINGS = 16  # a program that is further off than this many roundings of its type is not computing log-probabilities
LONG, LONG_ROUNDS = 1 << 33, 7  # multiply-adds: such a call is disturbed less than one of milliseconds
INTEL, AMD = 0.85, 0.95  # of torch's speed: MKL's kernels are made for the one

Inputs = dict[str, Any]  # part, x (the head), hidden, targets, dz float32 or None


def cases() -> list[Any]:
    """The cases made for this benchmark."""
    from mrtkern.ops.linear_cross_entropy.problem import CASES  # here: another revision's mrtkern may lack it

    return [case for case in CASES if case.tags & set(PARTS)]


def _targets() -> tuple[Target, ...]:
    """Of every product, against torch in the same type."""
    found = []
    least = AMD if "AMD" in machine.cpu() else INTEL
    for case in cases():
        if part_of(case) == "log_prob":
            continue
        if case.problem.product == torch.float32:
            text = f">= {INTEL} x torch on Intel, {AMD} on AMD"
            found.append(Target(case.name, text, "speedup", least, TORCH))
        else:
            found.append(Target(case.name, f">= {INTEL} x torch without AMX", "speedup", INTEL, MASKED))
    return tuple(found)


def part_of(case: Any) -> str:
    """Which product, or "log_prob"."""
    (part,) = case.tags & set(PARTS)
    return part


TARGETS = _targets()
UNFINISHED = (  # on the machine of the last run
    "unfinished sums of a chunk go to memory and come back, the same way whatever the threads and the strides; ours "
    "reaches 62 to 65 % of multiplying alone, torch 77 %"
)
REASONS = {  # (name of the case, text of the target) -> why it is missed
    (name, f">= {INTEL} x torch on Intel, {AMD} on AMD"): UNFINISHED
    for name in ("logits 2,048 x 1,024 x 4,096 float32", "weight_gradient 512 x 32,000 x 1,024 float32")
}
MOST_ROUNDS = {case.name: LONG_ROUNDS for case in cases() if case.problem.flops >= 2 * LONG}


def make_inputs(case: Any) -> Inputs:
    """What one call gets. dz is float32, as a loss leaves it; its numbers are of the type that multiplies."""
    problem, given, dz = case.problem, case.make_inputs(seed=0), None
    if part_of(case).endswith("gradient"):
        dz = torch.randn(problem.T, problem.V, generator=torch.Generator().manual_seed(1)).to(problem.product).float()
    return {
        "part": part_of(case),
        "x": given["weight"],
        "hidden": given["hidden"],
        "targets": given["targets"],
        "dz": dz,
    }


def work(case: Any) -> tuple[int, int]:
    """Bytes and floating-point operations of one call."""
    p = case.problem
    hidden, weight, dz = p.T * p.D * p.hidden.itemsize, p.V * p.D * p.weight.itemsize, p.T * p.V * 4
    nbytes = {
        "logits": hidden + weight + dz,
        "hidden_gradient": dz + weight + p.T * p.D * 4,
        "weight_gradient": dz + hidden + p.V * p.D * 4,
        "log_prob": hidden + weight + p.T * 4,
    }
    return nbytes[part_of(case)], p.flops


def backend(case: Any) -> str:
    """Which backend runs it."""
    return _dispatch.choose("linear_cross_entropy", None, case.problem)


def tiny(inputs: Inputs) -> Inputs:
    """Two rows: loads every library before memory is measured."""
    few = {name: inputs[name][:2] for name in ("hidden", "targets", "dz") if inputs[name] is not None}
    return inputs | few


def factors(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """a [M, K] and b [N, K], whose product is a b^T."""
    h, weight, dz = inputs["hidden"], inputs["x"], inputs["dz"]
    if inputs["part"] == "logits":
        return h, weight
    return (dz, weight.T) if inputs["part"] == "hidden_gradient" else (dz.T, h.T)


def prepared(inputs: Inputs) -> Callable[[], Any]:
    """The library's call, with what a head has before it: room for the result and for packed factors."""
    h, weight, dz = inputs["hidden"], inputs["x"], inputs["dz"]
    if inputs["part"] == "log_prob":
        return partial(mrtkern.linear_log_prob, h, weight, inputs["targets"])
    from mrtkern.ops.linear_cross_entropy.tiles import Products  # here: there may be no compiled kernels

    products = Products(weight, None, weight.dtype)
    a, b = factors(inputs)
    out = torch.empty((len(a), len(b)), dtype=torch.float32)
    calls = {
        "logits": lambda: products.logits(out, h),
        "hidden_gradient": lambda: products.hidden_gradient(out, dz),
        "weight_gradient": lambda: products.add_weight_gradient(out, dz, h, is_first=True),
    }
    call = calls[inputs["part"]]

    def run() -> Tensor:
        call()
        return out

    return run


def ours(inputs: Inputs) -> Any:
    """The library's call and what comes before it."""
    return prepared(inputs)()


def product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """torch's, into room made before."""
    return partial(torch.mm, a, b.T, out=a.new_empty((len(a), len(b))))


def torch_log_prob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The program that a user would write."""
    return F.linear(hidden, weight).log_softmax(1).gather(1, targets[:, None])[:, 0]


def own(inputs: Inputs) -> list[Competitor]:
    """Ours."""
    is_log_prob = inputs["part"] == "log_prob"
    return [Competitor("mrtkern", prepared(inputs), has_memory=is_log_prob)]


def others(inputs: Inputs) -> list[Competitor]:
    """The peers: torch in the same type, and in float32."""
    h, weight = inputs["hidden"], inputs["x"]
    if inputs["part"] == "log_prob":
        note = "F.linear + log_softmax + gather, no entropy"
        return [Competitor(TORCH, partial(torch_log_prob, h, weight, inputs["targets"]), note=note)]
    a, b = (factor.to(weight.dtype) for factor in factors(inputs))
    found = [Competitor(TORCH, product(a, b), note="torch.mm", has_memory=False)]
    if weight.dtype != torch.float32:
        note = "torch.mm of the same numbers in float32"
        found.append(Competitor(FLOAT32, product(a.float(), b.float()), note=note, has_memory=False))
    return found


def apart(inputs: Inputs) -> list[Apart]:
    """torch's bfloat16 as it is on processors without AMX; on such a processor the same once more."""
    if inputs["x"].dtype == torch.float32:
        return []
    note = f"the same in a process with {said(NO_AMX)}"
    return [Apart(MASKED, TORCH, environment=NO_AMX, note=note)]


def limits(inputs: Inputs) -> list[Competitor]:
    """Multiplying alone: its time over ours is the share of the peak that ours reaches."""
    kind = str(inputs["x"].dtype).removeprefix("torch.")
    a, b = (inputs["hidden"], inputs["x"]) if inputs["part"] == "log_prob" else factors(inputs)
    return peak(kind, 2 * len(a) * len(b) * a.shape[1])


def answer(inputs: Inputs, result: Any) -> Tensor:
    """The product, or the log-probabilities without the entropy; a copy, as the next call writes to the same room."""
    return (result[0] if isinstance(result, tuple) else result).clone()


def truth(inputs: Inputs) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows of the exact result at a time, float64, and how far the sums of a product may lead away from it."""
    if inputs["part"] == "log_prob":
        weight = inputs["x"].double()
        for rows in slices(len(inputs["hidden"])):
            exact = torch_log_prob(inputs["hidden"][rows].double(), weight, inputs["targets"][rows])
            yield rows, exact, torch.zeros_like(exact)
        return
    a, b = factors(inputs)
    b = b.double()
    for rows in slices(len(a)):
        part = a[rows].double()
        yield rows, part @ b.T, SUMS * UNIT * torch.outer(part.norm(dim=1), b.norm(dim=1))


def slices(count: int) -> Iterator[slice]:
    """ROWS at a time."""
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))


def check(inputs: Inputs, answers: Mapping[str, Tensor]) -> dict[str, str]:
    """The largest error of each answer, as text; WrongAnswer when one errs too much. Ours is named "mrtkern"."""
    errors = dict.fromkeys(answers, 0.0)
    for rows, exact, sums in truth(inputs):
        for name, given in answers.items():
            eps = torch.finfo(given.dtype).eps
            if inputs["part"] != "log_prob":
                limit = sums + eps / 2 * (exact.abs() + sums)  # one rounding of the result
            else:
                limit = sums + (LOG_PROB if name.startswith("mrtkern") else ROUNDINGS * eps * exact.abs())
            error = (given[rows].double() - exact).abs()
            if not bool((error <= limit).all()):
                worst = int((error / limit).argmax())
                off, allowed = (float(value.flatten()[worst]) for value in (error, limit))
                raise WrongAnswer(f"the {inputs['part']} of {name} is off by {off:.1e}, allowed are {allowed:.1e}")
            errors[name] = max(errors[name], float(error.max()))
    return {name: f"error {error:.0e}" for name, error in errors.items()}
