"""Rows that are tokens already, with labels and an id of their prompt, as a trainer's own preparation leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mrtkern.integrations.data import checks
from mrtkern.integrations.data.rows import plain, shown
from mrtkern.integrations.step import IGNORE

OP = "TokenizedCollator"


class TokenizedCollator:
    """Pads rows of one response each into a batch in which responses know their prompt.

    Arguments
    ---------
    prompt_id : str
        The column of what names the prompt of a row, as `mrtkern.group` takes it; equal prompts with other ids are two.
    pad_token_id, pad_to_multiple_of : int
        Of the padding, on the right. None: multiples of 1.

    Rows have input_ids, labels, prompt_id, and maybe an attention_mask of their own, which is kept.

    Returns
    -------
    batch : dict
        input_ids, attention_mask, labels [R, L]; prompt, prompt_key [R], as `ResponseCollator` has them.

    Raises
    ------
    ValueError
        For rows without input_ids, labels or prompt_id, values that are no tokens, labels and an attention_mask that
        are not as many as these, and for no rows.

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

    def __init__(self, prompt_id: str, *, pad_token_id: int = 0, pad_to_multiple_of: int | None = None) -> None:
        self.prompt_id, self.pad_token_id = prompt_id, checks.whole(OP, "pad_token_id", pad_token_id, 0)
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        self.pad_to_multiple_of = checks.whole(OP, "pad_to_multiple_of", multiple, 1)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch."""
        checks.some(OP, rows)
        read = [self.read(row, f"row {r} of the batch") for r, row in enumerate(rows)]
        longest = max(len(row["input_ids"]) for row in read)
        L = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch = {
            name: torch.full((len(rows), L), padding, dtype=torch.int64, device="cpu")
            for name, padding in (("input_ids", self.pad_token_id), ("attention_mask", 0), ("labels", IGNORE))
        }
        for r, row in enumerate(read):
            for name, values in row.items():
                batch[name][r, : len(values)] = torch.tensor(values, dtype=torch.int64, device="cpu")
        ids = [row[self.prompt_id] for row in rows]
        batch["prompt"], batch["prompt_key"] = checks.numbered(OP, self.prompt_id, ids)
        return batch

    def read(self, row: Mapping[str, Any], where: str) -> dict[str, list[int]]:
        """The columns of a row that become its tensors."""
        for name in ("input_ids", "labels", self.prompt_id):
            if name not in row:
                raise ValueError(f"{OP}: {where} must have a column {name!r}, got {', '.join(map(str, row))}")
        tokens = self.values(row, "input_ids", "hold whole numbers from 0", lambda i: i >= 0, where)
        if not tokens:
            raise ValueError(f"{OP}: column 'input_ids' must hold a token at least, got none in {where}")
        found = {"input_ids": tokens, "attention_mask": [1] * len(tokens)}
        rule = f"hold whole numbers from 0, or {IGNORE}"
        found["labels"] = self.values(row, "labels", rule, lambda i: i >= 0 or i == IGNORE, where)
        if row.get("attention_mask") is not None:
            found["attention_mask"] = self.values(row, "attention_mask", "hold 0 and 1", lambda i: i in (0, 1), where)
        for name, values in found.items():
            if len(values) != len(tokens):
                raise ValueError(
                    f"{OP}: {name} must be as many as the {len(tokens)} tokens of {where}, got {len(values)}"
                )
        return found

    @staticmethod
    def values(row: Mapping[str, Any], name: str, rule: str, is_right: Callable[[int], bool], where: str) -> list[int]:
        """A list of whole numbers."""
        given = plain(row[name])
        if not checks.are_whole(given, -(2**63)) or not all(map(is_right, given)):
            raise ValueError(f"{OP}: column {name!r} must {rule}, got {shown(given)} in {where}")
        found: list[int] = given
        return found
