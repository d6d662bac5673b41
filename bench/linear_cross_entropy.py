"""Linear cross-entropy with a weight per token: cases, competitors, the check of their answers, targets.

Everyone computes the weighted loss and the gradients of hidden states and head. Loss, the gradient of the first and the
last rows and that of some classes are compared with float64. The naive program in bfloat16 runs a second time in a
process whose oneDNN may not use AMX: its tiles sum in another order than every other instruction, so ours cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import mrtkern
from bench import machine
from bench.harness import Competitor, WrongAnswer
from bench.report import Target
from bench.worker import NO_AMX, Apart, said
from mrtkern import _dispatch

OP = "linear_cross_entropy"
CHECKED = 64  # rows at either end, and classes
CHUNK = 512  # rows of the peers' tuned chunks: best of 64 … 2,048
PART = 1 / 4  # of the rows: without an instruction for bfloat16 products torch's take minutes
LOSS_ERROR = 1e-5  # relative, of ours; of the peers 1e-2: eager bfloat16 rounds every loss
SUMS, TERMS = 1e-6, 32_000  # error of float32 sums of so many products; of more it grows like that of random steps
NAIVE, MASKED, COMPILED, CHECKPOINTED = "naive", "naive, no AMX", "torch.compile", "checkpointed chunks"
DEFAULT, TUNED = "torch chunked none·w, default", "torch chunked none·w, tuned"
SIZE, LARGE = "2,048 x 1,024 x 32,000", "2,048 x 896 x 151,936"
# A call takes seconds: other programs disturb it less than they do one of milliseconds.
MOST_ROUNDS = {
    f"{SIZE} float32, none ignored": 3,
    f"{SIZE} float32, 40 % ignored": 3,
    f"{SIZE} bfloat16": 3,
    f"{LARGE} float32": 1,
    f"{LARGE} bfloat16": 1,
}


def _targets(float32: str, bfloat16: str, accumulator: int) -> tuple[Target, ...]:
    """Of one shape: the names of its cases, MiB of a float32 matrix as large as the head."""
    return (
        Target(float32, "≤ 0.92 × naive", "cost", 0.92, NAIVE),
        Target(bfloat16, "≤ 0.95 × naive without AMX", "cost", 0.95, MASKED),
        Target(float32, "≥ 2.7 × torch's chunked none·w", "speedup", 2.7, DEFAULT),
        Target(bfloat16, "≥ 5 × torch's chunked none·w", "speedup", 5.0, DEFAULT),
        Target(float32, "≤ 256 MiB", "memory", 256),
        Target(bfloat16, "≤ 256 MiB + a float32 accumulator", "memory", 256 + accumulator),
    )


TARGETS = (
    *_targets(f"{SIZE} float32, none ignored", f"{SIZE} bfloat16", 125),
    Target(f"{SIZE} float32, 40 % ignored", "≤ 0.65 × naive", "cost", 0.65, NAIVE),
    Target(f"{SIZE} float32, 40 % ignored", "≤ 256 MiB", "memory", 256),
    *_targets(f"{LARGE} float32", f"{LARGE} bfloat16", 519),
)
ABOVE_THE_ROOF = (  # on the machine of the last run
    "that would be faster than the roof of float32 products: the last-level cache of 260 MiB holds weight and dW, so "
    "torch's many passes over them cost it little here"
)
OWN_PRODUCTS = (
    "the products are ours, for the same bits on every machine: 0.83 to 1.18 times the speed of torch's "
    "(head_products), which leaves the saved passes over the logits no gain in float32"
)
REASONS = {  # (name of the case, text of the target) -> why it is missed
    (f"{SIZE} float32, none ignored", "≤ 0.92 × naive"): OWN_PRODUCTS,
    (f"{LARGE} float32", "≤ 0.92 × naive"): OWN_PRODUCTS,
    (f"{SIZE} float32, none ignored", "≥ 2.7 × torch's chunked none·w"): ABOVE_THE_ROOF,
    (f"{SIZE} bfloat16", "≥ 5 × torch's chunked none·w"): ABOVE_THE_ROOF,
}

Inputs = dict[str, Any]  # x (the head), hidden, targets, token_weight


def cases() -> list[Any]:
    """The cases made for benchmarks."""
    from mrtkern.ops.linear_cross_entropy.problem import CASES  # here: another revision's mrtkern may lack it

    return [case for case in CASES if "bench" in case.tags]


def make_inputs(case: Any) -> Inputs:
    """What one call gets."""
    given = case.make_inputs(seed=0)
    given["x"] = given.pop("weight")
    return given


def work(case: Any) -> tuple[int, int]:
    """Bytes and floating-point operations of one call."""
    return case.problem.bytes, case.problem.flops


def backend(case: Any) -> str:
    """Which backend runs it."""
    return _dispatch.choose(OP, None, case.problem)


def tiny(inputs: Inputs) -> Inputs:
    """The same: torch.compile specialises on sizes, and compiling again would count as memory of the call."""
    return inputs


def part_of(inputs: Inputs, T: int) -> Inputs:
    """The first T rows."""
    hidden = inputs["hidden"].detach()[:T].requires_grad_()
    rows = {name: inputs[name][:T] for name in ("targets", "token_weight")}
    return {"x": inputs["x"], "hidden": hidden, **rows}


def with_gradients(inputs: Inputs, loss: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    """The loss and the gradients of hidden states and head."""
    hidden, head = inputs["hidden"], inputs["x"]
    found = loss(hidden, head, inputs["targets"], inputs["token_weight"])
    return found.detach(), *torch.autograd.grad(found, (hidden, head))


def ours(inputs: Inputs, backend: str | None = None) -> tuple[Tensor, ...]:
    """The library's call."""

    def loss(hidden: Tensor, head: Tensor, targets: Tensor, w: Tensor) -> Tensor:
        return mrtkern.linear_cross_entropy(hidden, head, targets, token_weight=w, backend=backend)

    return with_gradients(inputs, loss)


def naive_loss(hidden: Tensor, head: Tensor, targets: Tensor, w: Tensor) -> Tensor:
    """All logits at once."""
    return (F.cross_entropy(F.linear(hidden, head), targets, reduction="none") * w).sum()


def checkpointed_loss(hidden: Tensor, head: Tensor, targets: Tensor, w: Tensor) -> Tensor:
    """CHUNK rows at a time, whose logits are computed again in backward."""
    parts = zip(hidden.split(CHUNK), targets.split(CHUNK), w.split(CHUNK), strict=True)
    losses = [checkpoint(naive_loss, h, head, y, v, use_reentrant=False) for h, y, v in parts]
    return torch.stack(losses).sum()


def torch_chunked_loss(options: Any, hidden: Tensor, head: Tensor, targets: Tensor, w: Tensor) -> Tensor:
    """torch's own chunks; only without a reduction do they take weights."""
    return (F.linear_cross_entropy(hidden, head, targets, reduction="none", options=options) * w).sum()


@cache
def compiled_loss() -> Callable[..., Tensor]:
    """The naive program, compiled."""
    return torch.compile(naive_loss, dynamic=False)


def own(inputs: Inputs) -> list[Competitor]:
    """Ours."""
    return [Competitor("mrtkern", partial(ours, inputs))]


def others(inputs: Inputs) -> list[Competitor]:
    """The peers."""

    def competitor(name: str, loss: Callable[..., Tensor], note: str, rows: int | None = None) -> Competitor:
        if rows is None or rows == T:
            return Competitor(name, partial(with_gradients, inputs, loss), note=note)
        run = partial(with_gradients, part_of(inputs, rows), loss)
        return Competitor(name, run, scale=T / rows, note=f"{note}; {rows} of the {T} rows", has_memory=False)

    hidden, head = inputs["hidden"], inputs["x"]
    T = hidden.shape[0]
    few = int(T * part(head.dtype))
    found = [
        competitor(NAIVE, naive_loss, "(F.cross_entropy(F.linear(h, W), y, reduction='none') * w).sum()", few),
        competitor(COMPILED, lambda *given: compiled_loss()(*given), "of the naive program", few),
        competitor(CHECKPOINTED, checkpointed_loss, f"{CHUNK} rows at a time", few),
    ]
    if not hasattr(torch.nn, "LinearCrossEntropyOptions") or bool((inputs["targets"] < 0).any()):
        return found
    options = torch.nn.LinearCrossEntropyOptions
    rows = options()._adjust(T, head.shape[1], head.shape[0], head.dtype, head.device).batch_chunk_size
    for name, size in ((DEFAULT, rows), (TUNED, CHUNK)):
        loss = partial(torch_chunked_loss, options(batch_chunk_size=size))
        found.append(competitor(name, loss, f"F.linear_cross_entropy, {size} rows at a time", few))
    return found


def apart(inputs: Inputs) -> list[Apart]:
    """The naive program in bfloat16 as it is on processors without AMX; on such a processor the same once more."""
    if inputs["x"].dtype == torch.float32:
        return []
    note = f"the same in a process with {said(NO_AMX)}"
    return [Apart(MASKED, NAIVE, environment=NO_AMX, note=note, scale=1 / part(inputs["x"].dtype))]


def part(dtype: torch.dtype) -> float:
    """How much of the rows the peers get."""
    return 1 if dtype == torch.float32 or "avx512_bf16" in machine.cpu() else PART


def sample(inputs: Inputs) -> Tensor:
    """The classes whose gradient is checked: targets of the last rows."""
    valid = inputs["targets"][inputs["targets"] >= 0]
    return valid[-CHECKED:].unique()


def answer(inputs: Inputs, result: Any) -> dict[str, Tensor]:
    """The loss, and the checked rows of both gradients."""
    loss, dh, dW = result
    found = {"loss": loss.detach(), "rows": dh[:CHECKED], "classes": dW[sample(inputs)]}
    return {name: value.double() for name, value in found.items()} if len(dh) == len(inputs["hidden"]) else {}


def truth(inputs: Inputs) -> dict[str, Tensor]:
    """The same in float64, some rows at a time."""
    hidden, head = inputs["hidden"].detach().double(), inputs["x"].detach().double()
    classes, w = sample(inputs), inputs["token_weight"].double() * (inputs["targets"] >= 0)
    loss, dW = hidden.new_zeros(()), hidden.new_zeros((len(classes), hidden.shape[1]))
    rows = []
    for h, y, v in zip(hidden.split(CHECKED), inputs["targets"].split(CHECKED), w.split(CHECKED), strict=True):
        z = h @ head.T
        log_p = z.log_softmax(1)
        one_hot = F.one_hot(y.clamp(min=0), len(head)).double() if not rows else None
        loss -= (v * log_p.gather(1, y.clamp(min=0)[:, None])[:, 0]).sum()
        dz = v[:, None] * (log_p[:, classes].exp() - (y[:, None] == classes).double())
        dW += dz.T @ h
        if one_hot is not None:
            rows.append((v[:, None] * (log_p.exp() - one_hot)) @ head)
    return {"loss": loss, "rows": rows[0], "classes": dW}


def check(inputs: Inputs, answers: Mapping[str, dict[str, Tensor]]) -> dict[str, str]:
    """The largest error of each answer, as text; WrongAnswer when one errs too much. Ours is named "mrtkern"."""
    right, dtype = truth(inputs), inputs["x"].dtype
    found = {name: [] for name in answers}  # type: dict[str, list[str]]
    for part, expected in right.items():
        size = float(expected.abs().max())
        for name, given in answers.items():
            if part not in given:
                continue
            error = float((given[part] - expected).abs().max()) / size
            is_ours = name.startswith("mrtkern")
            limit = LOSS_ERROR if is_ours else 1e-2
            if part != "loss":
                eps = torch.finfo(dtype).eps
                sums = SUMS * max(len(inputs["x"]) / TERMS, 1) ** 0.5 if dtype == torch.float32 else 0
                limit = eps * (1 if is_ours else 16) + sums
            if not error <= limit:
                raise WrongAnswer(f"{part} of {name} errs by {error:.1e} of the largest, allowed are {limit:.1e}")
            found[name].append(f"{part} {error:.0e}")
    return {name: "error: " + ", ".join(said) if said else "of a part" for name, said in found.items()}
