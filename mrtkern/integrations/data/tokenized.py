"""Rows that are tokens already, with labels and an id of their prompt, as a trainer's own preparation leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import mrtkern as mk
from mrtkern.integrations.data.rows import plain
from mrtkern.integrations.step import IGNORE

OP = "TokenizedCollator"


class TokenizedCollator:
    """Pads rows of one response each into a batch in which responses know their prompt.

    Arguments
    ---------
    prompt_id : str
        The column of a text or a number that names the prompt of a row; equal prompts with other ids are two.
    pad_token_id, pad_to_multiple_of : int
        Of the padding, on the right.

    Returns
    -------
    batch : dict
        input_ids, attention_mask, labels [R, L]; prompt, prompt_key [R], as `ResponseCollator` has them.

    Raises
    ------
    ValueError
        For rows without input_ids, labels or prompt_id, and labels that are not as many as the tokens.

    Memory
    ------
    The batch.

    Determinism
    -----------
    The same rows give the same batch.

    Example
    -------
    >>> from mrtkern.integrations.data import TokenizedCollator
    >>> long = {"input_ids": [5, 7, 8], "labels": [-100, 7, 8], "id": "a"}
    >>> batch = TokenizedCollator("id")([long, {"input_ids": [5, 9], "labels": [-100, 9], "id": "a"}])
    >>> batch["labels"].tolist(), batch["prompt"].tolist()
    ([[-100, 7, 8], [-100, 9, -100]], [0, 0])
    """

    def __init__(self, prompt_id: str, *, pad_token_id: int = 0, pad_to_multiple_of: int = 1) -> None:
        self.prompt_id, self.pad_token_id, self.pad_to_multiple_of = prompt_id, pad_token_id, pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch."""
        for i, row in enumerate(rows):
            absent = [name for name in ("input_ids", "labels", self.prompt_id) if name not in row]
            if absent:
                raise ValueError(f"{OP}: row {i} of the batch must have a column {absent[0]!r}, got {', '.join(row)}")
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        L = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids = torch.full((len(rows), L), self.pad_token_id, dtype=torch.int64, device="cpu")
        batch = {"input_ids": ids, "attention_mask": torch.zeros_like(ids), "labels": torch.full_like(ids, IGNORE)}
        for r, row in enumerate(rows):
            tokens, labels = list(plain(row["input_ids"])), list(plain(row["labels"]))
            if len(labels) != len(tokens):
                rule = f"be as many as the {len(tokens)} tokens of row {r} of the batch"
                raise ValueError(f"{OP}: labels must {rule}, got {len(labels)}")
            ids[r, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64, device="cpu")
            batch["attention_mask"][r, : len(tokens)] = 1
            batch["labels"][r, : len(tokens)] = torch.tensor(labels, dtype=torch.int64, device="cpu")
        order, offsets, keys = mk.group([plain(row[self.prompt_id]) for row in rows])
        number = torch.repeat_interleave(offsets.diff())
        batch["prompt"] = torch.empty_like(number).index_copy_(0, order, number)
        batch["prompt_key"] = keys[batch["prompt"]]
        return batch
