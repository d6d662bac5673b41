"""Batches of supervised training whose responses know their prompts, and what an optimizer step is counted by.

What a collator gives, beside what the model takes:

    prompt [R]                which responses of this batch share a prompt; none: each its own
    prompt_key [R]            the same where a prompt has responses in other batches and on other ranks
    response_offsets [R + 1]  where responses lie in the labels of a batch without padding
    response_weight_bits [R]  float64 weights as int64
    dataset_row [R]           which of the rows of the batch a response comes from
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mrtkern as mk
from mrtkern.integrations import step
from mrtkern.integrations.data import checks
from mrtkern.integrations.data.rows import plain, shown
from mrtkern.integrations.step import IGNORE
from mrtkern.integrations.trl.weights import step_weights

KEYS = ("prompt", "prompt_key", "response_offsets", "response_weight_bits", "dataset_row")
OP = "SFTTrainer"


def keys_of(ids: Sequence[Any]) -> Tensor:
    """64 bits for each id, the same for equal ids on every rank; lists, such as messages, by their JSON."""
    plain = [json.dumps(id_, sort_keys=True) if isinstance(id_, (list, dict)) else id_ for id_ in ids]
    order, offsets, keys = mk.group(plain)
    number = torch.repeat_interleave(offsets.diff())
    return keys[torch.empty_like(number).index_copy_(0, order, number)]


class PromptCollator:
    """A collator of TRL's or of the user's, whose batches also say which prompt a response belongs to.

    Rows hold the column prompt_id, and the column of weights if there is one; packed rows hold a value for each token.
    """

    def __init__(self, collator: Any, prompt_id: str | None, weight: str | None) -> None:
        self.collator, self.prompt_id, self.weight = collator, prompt_id, weight

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        checks.some(OP, rows)
        batch = dict(self.collator(rows))
        if "prompt" in batch:  # ResponseCollator's: a row is a prompt, or has a key
            has_key = "prompt_key" in batch
            own = torch.arange(len(batch["prompt"]), dtype=torch.int64, device="cpu")
            return {**batch, "dataset_row": own if has_key else batch["prompt"]}
        starts = [(i, start) for i, row in enumerate(rows) for start in self.starts(row)]
        batch["dataset_row"] = torch.tensor([i for i, _ in starts], dtype=torch.int64, device="cpu")
        if len(batch["labels"]) != len(starts):  # all in one row
            sizes = [n for row in rows for n in row.get("seq_lengths", [len(row["input_ids"])])]
            batch["response_offsets"] = torch.tensor([0, *sizes], dtype=torch.int64, device="cpu").cumsum(0)
        if self.prompt_id is not None:
            batch["prompt_key"] = keys_of(self.column(rows, self.prompt_id, starts))
        if self.weight is not None:
            v = plain(self.column(rows, self.weight, starts))
            if not all(map(checks.is_number, v)):
                raise ValueError(f"{OP}: column {self.weight!r} must hold finite numbers, got {shown(v)}")
            bits = torch.tensor(v, dtype=torch.float64, device="cpu").view(torch.int64)
            batch["response_weight_bits"] = bits
        return batch

    @staticmethod
    def starts(row: Mapping[str, Any]) -> list[int]:
        """Where the responses of a row begin."""
        sizes = row.get("seq_lengths")
        return [0] if sizes is None else [sum(sizes[:j]) for j in range(len(sizes))]

    @staticmethod
    def column(rows: list[dict[str, Any]], name: str, starts: list[tuple[int, int]]) -> list[Any]:
        """The values of a column, one per response."""
        if name not in rows[0]:
            raise ValueError(f"{OP}: rows must have a column {name!r}, got {', '.join(rows[0])}")
        return [rows[i][name][start] if "seq_lengths" in rows[i] else rows[i][name] for i, start in starts]


class Responses(NamedTuple):
    """The responses of a batch."""

    rows: Tensor  # [R, 4] int64 on the CPU: the batch of its prompt (-1: any), prompt, tokens, weight's bits
    dataset_row: Tensor  # [R]
    owner: Tensor  # [B, L - 1] on the CPU: which response a label is of, R where it is not learnt


def responses_of(batch: dict[str, Any], number: int) -> Responses:
    """Takes the keys of this module out of a batch; `number` is the batch's own among all of a step."""
    taken = {key: batch.pop(key, None) for key in KEYS}
    given = {key: value.cpu() for key, value in taken.items() if value is not None}
    labels = batch["labels"].cpu()
    offsets = given.get("response_offsets")
    is_learnt = labels != IGNORE
    if offsets is None:
        R, L = labels.shape
        owner = torch.arange(R, dtype=torch.int64, device="cpu")[:, None].expand(R, L)
    else:
        R = len(offsets) - 1
        position = torch.arange(labels.shape[1], dtype=torch.int64, device="cpu")
        owner = torch.searchsorted(offsets[1:], position, right=True)[None]
        is_learnt = is_learnt.index_fill(1, offsets[:-1], False)  # nothing predicts the first label of a response
    owner = torch.where(is_learnt, owner, R)[:, 1:]
    tokens = torch.bincount(owner.flatten(), minlength=R + 1)[:R]
    ones = torch.ones(R, dtype=torch.float64, device="cpu").view(torch.int64)
    own = torch.arange(R, dtype=torch.int64, device="cpu")
    key = given.get("prompt_key")
    first = torch.full_like(own, -1 if key is not None else number)
    prompt = given.get("prompt", own) if key is None else key
    rows = torch.stack([first, prompt, tokens, given.get("response_weight_bits", ones)], 1)
    return Responses(rows, given.get("dataset_row", own), owner)


def weights_of(rows: Tensor, normalize: str, has_weights: bool, constant: float) -> Tensor:
    """The weight of a token of each response [R]: rows of all batches and ranks of a step."""
    number = rows[:, :2].unique(dim=0, return_inverse=True)[1]
    v = rows[:, 3].contiguous().view(torch.float64) if has_weights else None
    return step_weights(normalize, rows[:, 2], number, response_weight=v, constant=constant)


def gathered(rows: Tensor, accelerator: Any) -> tuple[Tensor, slice]:
    """Rows [n, C] of all ranks, which may have different numbers of them, on the CPU; and where this rank's lie."""

    def gather(values: Tensor) -> Tensor:
        found: Tensor = accelerator.gather(values.to(accelerator.device))
        return found

    blocks, rank = step.gathered(rows, gather if accelerator.num_processes > 1 else None)
    first = sum(map(len, blocks[:rank]))
    return torch.cat(blocks), slice(first, first + len(rows))
