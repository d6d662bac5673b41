"""A shared prompt: loss and gradients of K responses in one row against K rows, on a small model of the Llama kind.

The K rows have equal lengths, so that they need no padding and no mask: torch's fused causal attention, the peer at its
best. Both programs run the same model on the same numbers; loss and gradient of the two must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.harness import Competitor, Spread, WrongAnswer
from bench.report import MIB, OURS, CaseResult, Target, align

OP = "prefix"
ROWS = "K rows"
TOKENS = 640  # of a prompt and one response
SIZES = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
SAME = 1e-5  # largest relative difference of the loss, and of the gradient of a parameter in norm
LEAST = 0.8  # of the ratio of tokens, where the prompt dominates
SLOWEST = 1.05  # times K rows, everywhere
ROUNDS_OF_A_CASE = 5  # a call takes up to half a second
HAS_MEMORY_HERE = True  # a process that imports transformers takes five

Inputs = dict[str, Any]  # x (the parameters, as they are read), prompt [P], responses [K, R]


@dataclass(frozen=True)
class Case:
    """One prompt with K responses of equal length."""

    P: int
    R: int
    K: int

    @property
    def name(self) -> str:
        """As in the table."""
        a, b = (4, 1) if self.P > self.R else (1, 1) if self.P == self.R else (1, 4)
        return f"prompt:response {a}:{b}, K = {self.K}"

    @property
    def tokens(self) -> tuple[int, int]:
        """In one row, and in K rows."""
        return self.P - 1 + self.K * (self.R + 1), self.K * (self.P + self.R)


def cases() -> list[Case]:
    """Prompts four times as long as a response, as long, and a fourth."""
    return [Case(P, TOKENS - P, K) for P in (512, 320, 128) for K in (2, 4, 8, 16)]


def _targets() -> tuple[Target, ...]:
    """Never slower; near the ratio of tokens where the prompt dominates."""
    found = [Target(case.name, f"≤ {SLOWEST} × {ROWS}", "cost", SLOWEST, ROWS) for case in cases()]
    for case in cases():
        if case.P > case.R:
            packed, rows = case.tokens
            found.append(Target(case.name, f"≥ {LEAST} × the tokens saved", "speedup", LEAST * rows / packed, ROWS))
    return tuple(found)


TARGETS = _targets()
REASONS: dict[tuple[str, str], str] = {}
MOST_ROUNDS = {case.name: ROUNDS_OF_A_CASE for case in cases()}


@cache
def model(attention: str) -> Any:
    """The same numbers for both."""
    from transformers import LlamaConfig, LlamaForCausalLM  # here: the other benchmarks need no transformers

    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation=attention))
    made.config.use_cache = False
    return made.train()


def make_inputs(case: Case) -> Inputs:
    """What one call gets."""
    g = torch.Generator().manual_seed(0)
    prompt, responses = (
        torch.randint(SIZES["vocab_size"], shape, generator=g) for shape in ((case.P,), (case.K, case.R))
    )
    x = torch.cat([p.detach().flatten() for p in model("sdpa").parameters()])
    return {"x": x, "prompt": prompt, "responses": responses}


def work(case: Case) -> tuple[int, int]:
    """Bytes of the parameters and their gradient; operations of the layers' products for the tokens of one row."""
    D, F, V, L = (SIZES[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"))
    kept = SIZES["num_key_value_heads"] / SIZES["num_attention_heads"]
    layer = int(D * D * (2 + 2 * kept)) + 3 * D * F
    packed, _ = case.tokens
    return 8 * (L * layer + 2 * V * D), 6 * (L * layer + V * D) * packed


def backend(case: Case) -> str:
    """How the prefix is shared here."""
    return "cpu: torch's fused kernel on parts, joined by their sums"


def tiny(inputs: Inputs) -> Inputs:
    """A few tokens: loads every library before memory is measured."""
    return {**inputs, "prompt": inputs["prompt"][:4], "responses": inputs["responses"][:2, :4]}


def step(net: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradient of every parameter, of which the model keeps none."""
    loss = net(**batch).loss
    loss.backward()
    gradients = [p.grad for p in net.parameters()]
    net.zero_grad()
    return loss.detach(), gradients


@cache
def collator() -> Any:
    """Ours."""
    from mrtkern.integrations.prefix import PrefixCollator

    return PrefixCollator(None, model("eager"))


def ours(inputs: Inputs) -> Any:
    """The prompt once, the collator's work included."""
    row = {"prompt": inputs["prompt"], "responses": inputs["responses"]}
    batch = collator()([row])
    return step(model("eager"), batch)


def rows(inputs: Inputs) -> Any:
    """The prompt before every response."""
    K = len(inputs["responses"])
    prompt = inputs["prompt"].expand(K, -1)
    ids = torch.cat([prompt, inputs["responses"]], 1)
    labels = torch.cat([torch.full_like(prompt, -100), inputs["responses"]], 1)
    return step(model("sdpa"), {"input_ids": ids, "labels": labels})


def own(inputs: Inputs) -> list[Competitor]:
    """Ours."""
    return [Competitor(OURS, partial(ours, inputs))]


def others(inputs: Inputs) -> list[Competitor]:
    """The peer."""
    return [Competitor(ROWS, partial(rows, inputs), note="transformers' sdpa, rows of equal length without a mask")]


def answer(inputs: Inputs, result: Any) -> list[Tensor]:
    """Loss and gradients."""
    loss, gradients = result
    return [loss, *gradients]


def check(inputs: Inputs, answers: Mapping[str, list[Tensor]]) -> dict[str, str]:
    """The largest relative difference from the rows."""
    truth, found = answers[ROWS], {}
    for name, given in answers.items():
        off = max(float((a - b).norm() / b.norm()) for a, b in zip(given, truth, strict=True))
        if not off <= SAME:
            raise WrongAnswer(f"loss and gradients of {name} are off by {off:.1e}, allowed are {SAME:.0e}")
        found[name] = f"off by {off:.0e}" if name != ROWS else "compared with"
    return found


def table(results: Iterable[CaseResult]) -> str:
    """All cases at a glance."""
    by_name: dict[str, Case] = {case.name: case for case in cases()}
    lines = []
    for result in results:
        packed, of_rows = by_name[result.name].tokens
        mib = [result.memory.get(name) for name in (OURS, ROWS)]
        memory = ["" if used is None else f"{used / MIB:.0f}" for used in mib]
        spread: Spread = result.ratios[ROWS]
        saved = of_rows / packed
        share = f"{spread.median / saved:.2f}"
        lines.append((result.name, str(packed), str(of_rows), f"{saved:.2f}", f"{spread.median:.2f}", share, *memory))
    header = ("", "tokens", f"of {ROWS}", "tokens saved", "time saved", "time / tokens", "MiB", f"MiB of {ROWS}")
    return align(header, lines, is_markdown=True, numbers=slice(1, None))
