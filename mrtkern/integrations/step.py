"""What a training step that is split over accumulated batches and ranks has to know of itself: its counts.

    for batches in counted_steps(loader, accumulation=4):
        for batch in batches:
            model(**batch).loss.backward()
        optimizer.step()

A loss that is normalised by the counts of the whole step adds up to that of one batch, however it is split. A batch is
what `mrtkern.integrations.data` makes:

    padded         labels [R, L]
    padding-free   labels [1, T] and response_offsets [R + 1]
    prompt [R]     which responses of this batch share a prompt; none: each its own
    prompt_key [R] the same where a prompt has responses in other batches or on other ranks
    response_weight_bits [R]   float64 response weights, as int64
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

OP = "count_step"
IGNORE = -100
COUNTS = ("num_prompts", "num_responses", "num_tokens", "responses_per_prompt", "tokens_per_prompt_bits")
KEYS = ("prompt", "prompt_key", "response_offsets", "response_weight_bits", "loss_parts", *COUNTS)
DIVISORS = {  # what the losses of batches are divided by; of parts of a step, by that of the whole step
    "token": "num_tokens", "response": "num_responses",
    **dict.fromkeys(("prompt", "prompt_token", "prompt_sum"), "num_prompts"),
}  # fmt: skip
PER_PROMPT = tuple(name for name, counted in DIVISORS.items() if counted == "num_prompts")
Gather = Callable[[Tensor], Tensor]

counting: set[int] = set()  # of callbacks that count in a trainer's stead: then a batch needs no counts


def packed_targets(labels: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The label that each position predicts [T], -100 at the end of a response, and the offsets of responses [R + 1].

    The first label of a response is predicted by nobody: it counts nowhere. labels [R, L], or [1, T] with offsets.
    """
    if labels.ndim != 2 or (offsets is not None and labels.shape[0] != 1):
        rule = "be [R, L], or [1, T] with response_offsets"
        raise ValueError(f"{OP}: labels must {rule}, got {list(labels.shape)}")
    if offsets is None:
        R, L = labels.shape
        shifted = torch.nn.functional.pad(labels[:, 1:], (0, min(L, 1)), value=IGNORE)
        return shifted.reshape(-1), torch.arange(R + 1, dtype=torch.int64, device=labels.device) * L
    T = labels.shape[1]
    offsets = offsets.to(labels.device, torch.int64)
    is_first = torch.zeros(T + 1, dtype=torch.bool, device=labels.device)
    is_first = is_first.index_fill(0, offsets[:-1].clamp(0, T), True)
    shifted = torch.nn.functional.pad(labels[0, 1:], (0, min(T, 1)), value=IGNORE)
    return torch.where(is_first[1:], IGNORE, shifted), offsets


def offsets_of(batch: Mapping[str, Any]) -> Tensor | None:
    """Where sequences of one row begin; collators of transformers have another name for it."""
    found: Tensor | None = batch.get("response_offsets")
    return batch.get("cu_seq_lens_q") if found is None else found


def tokens_of(labels: Tensor, offsets: Tensor | None) -> Tensor:
    """T_r [R] of labels as a batch has them."""
    targets, offsets = packed_targets(labels, offsets)
    before = torch.nn.functional.pad((targets != IGNORE).cumsum(0), (1, 0))
    return before[offsets[1:]] - before[offsets[:-1]]


def bits(values: Tensor) -> Tensor:
    """Numbers as the int64 that have the bits of their float64, on the CPU."""
    return values.detach().cpu().double().contiguous().view(torch.int64)


def response_rows(batch: Mapping[str, Any], number: int, T_r: Tensor) -> Tensor:
    """What a step is counted by: [R, 4] int64 on the CPU, of each response its batch (-1: any), prompt, T_r, v."""
    R = len(T_r)
    for name in ("prompt", "prompt_key", "response_weight_bits"):
        if batch.get(name) is not None and batch[name].shape != (R,):
            raise ValueError(f"{OP}: {name} must have a number per response [{R}], got {list(batch[name].shape)}")
    key, prompt, v = batch.get("prompt_key"), batch.get("prompt"), batch.get("response_weight_bits")
    own = torch.arange(R, dtype=torch.int64, device="cpu") if prompt is None else prompt
    one = bits(torch.ones(R, dtype=torch.float64, device="cpu"))
    columns = (
        torch.full((R,), number if key is None else -1, dtype=torch.int64, device="cpu"),
        own if key is None else key,
        T_r,
        one if v is None else v,
    )
    return torch.stack([column.cpu() for column in columns], 1)


def gathered(rows: Tensor, gather: Gather | None) -> tuple[list[Tensor], int]:
    """The rows [N, C] of every rank, on the CPU, and which of them are this rank's.

    A rank may take the equal rows of another for its own: whatever follows from them is equal as well.
    """
    if gather is None:
        return [rows.cpu()], 0
    sizes = gather(torch.tensor([len(rows)], dtype=torch.int64, device=rows.device)).cpu().tolist()
    own = torch.nn.functional.pad(rows, (0, 0, 0, max(sizes) - len(rows)))
    blocks = [block[:size] for block, size in zip(gather(own).cpu().chunk(len(sizes)), sizes, strict=True)]
    return blocks, next(rank for rank, block in enumerate(blocks) if torch.equal(block, rows.cpu()))


def whole_step(blocks: list[Tensor]) -> tuple[Tensor, ...]:
    """Of `response_rows` of every rank, with further columns of bits: prompts numbered over the ranks, T_r, v, …"""
    W = len(blocks)
    rank = torch.cat(
        [torch.full((len(block),), rank, dtype=torch.int64, device="cpu") for rank, block in enumerate(blocks)]
    )
    batch, prompt, T_r, *rest = torch.cat(blocks).unbind(1)
    batch = torch.where(batch < 0, -1, batch * W + rank)
    number = torch.stack((batch, prompt), 1).unique(dim=0, return_inverse=True)[1]
    return number, T_r, *(column.contiguous().view(torch.float64) for column in rest)


def totals(prompt: Tensor, T_r: Tensor) -> dict[str, Tensor]:
    """P, R and the number of tokens, of what `whole_step` gives."""
    return {
        "num_prompts": torch.tensor(len(prompt[T_r > 0].unique()), dtype=torch.int64, device="cpu"),
        "num_responses": (T_r > 0).sum(),
        "num_tokens": T_r.sum(),
    }


def count_step(
    batches: Sequence[Mapping[str, Any]], *, gather: Gather | None = None, parts: int = 1
) -> list[dict[str, Any]]:
    """The batches of one optimizer step with the counts of the whole step, by which their losses add up to one batch's.

    Arguments
    ---------
    batches : sequence of mappings
        All that this rank accumulates before its next step of the optimizer, as the head of this module says.
    gather : callable, optional
        Tensors of the same shape on every rank -> their concatenation along the first dimension, ranks ascending; on
        the device of the labels. None: one rank.
    parts : int
        What the trainer will divide the sum of the losses by: accumulated batches, where it divides by them, times
        ranks, where gradients are averaged over ranks.

    Returns
    -------
    batches : list of dict
        With num_prompts, num_responses, num_tokens (0-d), responses_per_prompt and tokens_per_prompt_bits [R], which
        `counts_of` gives `mrtkern.response_weights`, and loss_parts (0-d): integers, so that no trainer casts them.

    Raises
    ------
    ValueError
        For batches without labels, and numbers that are not one per response.

    Memory
    ------
    32 bytes per response of all ranks.

    Devices
    -------
    Counts are made on the CPU: a device is waited for once a batch, before the first forward of the step.

    Determinism
    -----------
    Sums of integers.

    Example
    -------
    >>> import torch
    >>> from mrtkern.integrations.step import count_step
    >>> first = {"labels": torch.tensor([[-100, 5, 6], [-100, 7, -100]]), "prompt": torch.tensor([0, 0])}
    >>> last = {"labels": torch.tensor([[-100, 8]]), "prompt": torch.tensor([0])}
    >>> [int(batch["num_prompts"]) for batch in count_step([first, last])]
    [2, 2]
    """
    rows = []
    for number, batch in enumerate(batches):
        if batch.get("labels") is None:
            raise ValueError(f"{OP}: a batch must have labels, got {', '.join(batch)}")
        rows.append(response_rows(batch, number, tokens_of(batch["labels"], offsets_of(batch))))
    device = batches[0]["labels"].device if batches else torch.device("cpu")
    mine = torch.cat([torch.empty((0, 4), dtype=torch.int64, device="cpu"), *rows])
    blocks, rank = gathered(mine.to(device), gather)
    prompt, T_r, v = whole_step(blocks)
    P = int(prompt.max()) + 1 if len(prompt) else 0
    K = torch.zeros(P, dtype=torch.int64, device="cpu").index_add_(0, prompt, (T_r > 0).long())
    tokens = torch.zeros(P, dtype=torch.float64, device="cpu").index_add_(0, prompt, v * T_r)
    own = prompt[sum(map(len, blocks[:rank])) :][: len(mine)]
    each = {"responses_per_prompt": K[own], "tokens_per_prompt_bits": bits(tokens[own])}
    pieces = {name: value.split([len(part) for part in rows]) for name, value in each.items()}
    whole = {name: value.to(device) for name, value in totals(prompt, T_r).items()}
    whole["loss_parts"] = torch.tensor(parts, dtype=torch.int64, device=device)
    return [
        {**batch, **whole, **{name: piece[number].to(device) for name, piece in pieces.items()}}
        for number, batch in enumerate(batches)
    ]


def refuse_drifting_ranks(op: str, trainer: Any) -> None:
    """Ranks whose gradients nobody averages: accelerate wraps no model that an evaluation prepared before training.

    trainer : one of transformers, before a step.
    """
    is_replicated = str(trainer.accelerator.distributed_type).rpartition(".")[2].startswith("MULTI")
    if is_replicated and trainer.model_wrapped is trainer.model:
        raise ValueError(f"{op}: ranks must share gradients, got a model that evaluate() prepared before train()")


def counted_steps(
    loader: Iterable[Mapping[str, Any]], accumulation: int, *, gather: Gather | None = None, parts: int = 1
) -> Iterator[list[dict[str, Any]]]:
    """The batches of a loader by optimizer steps, counted by `count_step`; the last step may have fewer than others.

    loader : the batches of this rank. accumulation : how many make a step. gather, parts : of `count_step`.
    """
    rest = iter(loader)
    while batches := list(itertools.islice(rest, accumulation)):
        yield count_step(batches, gather=gather, parts=parts)


def counts_of(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The counts that `count_step` gave a batch, as `mrtkern.response_weights` takes them."""
    counts = {name: batch[name] for name in COUNTS if batch.get(name) is not None}
    found = counts.pop("tokens_per_prompt_bits", None)
    return counts if found is None else {**counts, "tokens_per_prompt": found.view(torch.float64)}
