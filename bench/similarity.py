"""Similarity: cases, competitors, the check of their answers, targets.

Answers are compared with float64 on the first and the last groups (dense: rows). The peers may err by a few roundings
of their type, ours by twice as much as the torch program and one rounding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import mrtkern
from bench import peers
from bench.facility_location import equal_groups, on_one_thread
from bench.harness import Competitor, WrongAnswer
from bench.report import Target
from mrtkern import _dispatch

OP = "similarity"
CHECKED = 128  # groups or rows at either end: float64 products of all would take longer than the benchmark
ROUNDINGS = 16  # a program whose cosines are further off than this many roundings of its type is not computing cosines

TARGETS = (
    Target("10,000 x 16 x 384", ">= 8 x the torch program", "speedup", 8.0, "torch program"),
    Target("batch of 10,000", ">= 8 x the torch program", "speedup", 8.0, "torch program"),
    Target("gradient of 10,000", ">= 3 x the torch program", "speedup", 3.0, "torch program"),
    Target("4,000 x 384 with itself, rbf", ">= 1 x sklearn's rbf_kernel", "speedup", 1.0, "sklearn rbf_kernel"),
    Target("8,192", ">= 0.95 x the torch program", "speedup", 0.95, "torch program"),
)
_MEMORY = "81 % of the memory roof: 8 x would take 92 % of it"
REASONS: dict[tuple[str, str], str] = {  # (name of the case, text of the target) -> why it is missed
    ("10,000 x 16 x 384 float32", ">= 8 x the torch program"): _MEMORY,
    ("batch of 10,000 x 16 x 384 float32", ">= 8 x the torch program"): "its roof is memory, as for packed groups",
}

Inputs = dict[str, Any]  # x, y or None, offsets or None, metric, gamma, upstream or None (the gradient of the result)


def cases() -> list[Any]:
    """The cases made for benchmarks."""
    from mrtkern.ops.similarity.problem import CASES  # here: a child with another revision's mrtkern may lack it

    return [case for case in CASES if "bench" in case.tags]


def make_inputs(case: Any) -> Inputs:
    """What one call gets; with a gradient also the gradient of the result, as one vector."""
    given = case.make_inputs(seed=0)
    upstream = None
    if case.problem.wants_grad:
        upstream = torch.randn(case.problem.pairs, generator=torch.Generator().manual_seed(1)).to(given["x"].dtype)
    return {
        "x": given["x"],
        "y": given.get("y"),
        "offsets": given.get("offsets"),
        "metric": given["metric"],
        "gamma": given["gamma"],
        "upstream": upstream,
    }


def work(case: Any) -> tuple[int, int]:
    """Bytes and floating-point operations of one call."""
    return case.problem.bytes, case.problem.flops


def backend(case: Any) -> str:
    """Which backend runs it."""
    return _dispatch.choose(OP, None, case.problem)


def tiny(inputs: Inputs) -> Inputs:
    """The first rows only: loads every library before memory is measured."""
    x, offsets, upstream = blocks(inputs)[:2].detach().clone(), inputs["offsets"], inputs["upstream"]
    if offsets is not None:
        offsets, x = offsets[:3], x.flatten(0, 1)
    if upstream is not None:
        upstream = upstream[: int(offsets[1]) ** 2 * 2]
    return {**inputs, "x": x.requires_grad_(upstream is not None), "offsets": offsets, "upstream": upstream}


def blocks(inputs: Inputs) -> Tensor:
    """x as a batch [B, M, D] where groups are packed; otherwise x."""
    if inputs["offsets"] is None:
        return inputs["x"]
    B, N = equal_groups(inputs["offsets"])
    return inputs["x"].view(B, N, -1)


def with_gradient(inputs: Inputs, x: Tensor, forward: Callable[[], Tensor]) -> Any:
    """The result, and with an upstream gradient that of x too."""
    s = forward()
    if inputs["upstream"] is None:
        return s
    return s, torch.autograd.grad(s, x, inputs["upstream"].view(s.shape))[0]


def ours(inputs: Inputs, backend: str | None = None) -> Any:
    """The library's call."""
    x, options = inputs["x"], {name: inputs[name] for name in ("metric", "gamma", "offsets")}
    return with_gradient(inputs, x, lambda: mrtkern.similarity(x, inputs["y"], backend=backend, **options))


def torch_program(inputs: Inputs) -> Any:
    """F.normalize and a batched product, or distances; autograd for the gradient."""
    x = blocks(inputs)
    y = x if inputs["y"] is None else inputs["y"]
    return with_gradient(inputs, inputs["x"], lambda: scores(inputs, x, y))


def scores(inputs: Inputs, x: Tensor, y: Tensor) -> Tensor:
    """What the torch program computes."""
    if inputs["metric"] == "rbf":
        return torch.cdist(x, y).square_().mul_(-inputs["gamma"]).exp_()
    return peers.torch_cosines(x, y)


def own(inputs: Inputs) -> list[Competitor]:
    """Ours, and ours on one thread."""
    run = partial(ours, inputs)
    found = [Competitor("mrtkern", run)]
    if torch.get_num_threads() > 1:
        found.append(Competitor("mrtkern, 1 thread", partial(on_one_thread, run), has_memory=False))
    return found


def others(inputs: Inputs) -> list[Competitor]:
    """The peers."""
    if inputs["metric"] == "rbf":
        note = "cdist, squared, times -gamma, exp"
        found = [Competitor("torch program", partial(torch_program, inputs), note=note)]
        if importlib.util.find_spec("sklearn") is not None:
            kernel = partial(peers.sklearn_rbf, inputs["x"], inputs["gamma"])
            found.append(Competitor("sklearn rbf_kernel", kernel, has_memory=False))
        return found
    found = [Competitor("torch program", partial(torch_program, inputs), note="F.normalize + product")]
    if inputs["upstream"] is not None:
        return found
    x = blocks(inputs)
    if x.ndim == 3 and inputs["y"] is None:
        run = partial(peers.torch_cosines_diagonal, x)
        found.append(Competitor("torch, norms from diagonal", run, note="bmm + scale"))
    numpy = partial(peers.numpy_cosines, x, x if inputs["y"] is None else inputs["y"])
    return [*found, Competitor("numpy program", numpy, note="float32", has_memory=False)]


def answer(inputs: Inputs, result: Any) -> dict[str, Tensor]:
    """The checked ends of the cosines and of the gradient, as blocks."""
    x = blocks(inputs)
    s, gradient = result if isinstance(result, tuple) else (result, None)
    found = {"cosines": ends(s.detach().reshape(*x.shape[:-1], -1))}
    if gradient is not None:
        found["gradient"] = ends(gradient.reshape(x.shape))
    return found


def ends(value: Tensor) -> Tensor:
    """The first and the last entries of a batch."""
    return torch.cat([value[:CHECKED], value[-CHECKED:]]) if value.shape[0] > 2 * CHECKED else value


def truth(inputs: Inputs) -> dict[str, Tensor]:
    """The same ends in float64."""
    rows = blocks(inputs).detach()
    x = ends(rows).double()
    y = inputs["y"].double() if inputs["y"] is not None else rows.double() if rows.ndim == 2 else x
    if inputs["upstream"] is None:
        return {"cosines": scores(inputs, x, y)}
    x.requires_grad_()
    s = peers.torch_cosines(x, x)
    upstream = ends(inputs["upstream"].view(-1, *s.shape[1:])).double()
    return {"cosines": s.detach(), "gradient": torch.autograd.grad(s, x, upstream)[0]}


def check(inputs: Inputs, answers: Mapping[str, dict[str, Tensor]]) -> dict[str, str]:
    """The largest error of each answer, as text; WrongAnswer when one errs too much. Ours is named "mrtkern"."""
    right = truth(inputs)
    rounding = torch.finfo(inputs["x"].dtype).eps
    program = answers.get("torch program") or answer(inputs, torch_program(inputs))
    found: dict[str, str] = {}
    for part, expected in right.items():
        unit = rounding * float(expected.abs().max())
        errors = {name: float((given[part] - expected).abs().max()) for name, given in answers.items() if part in given}
        allowed = float((program[part] - expected).abs().max())
        for name, error in errors.items():
            limit = 2.0 * allowed + unit if name.startswith("mrtkern") else ROUNDINGS * unit
            if not error <= limit:
                raise WrongAnswer(f"the {part} of {name} are off by {error:.2e}, allowed are {limit:.2e}")
            found[name] = found[name] + f", {part} {error:.0e}" if name in found else f"error {error:.0e}"
    return found
