"""Batches for multi-response training: the responses of several prompts, each after its prompt, padded or packed.

    padded         input_ids, attention_mask, labels [R, L]; prompt [R]
    padding-free   input_ids, position_ids, labels [1, T], positions restart with each sequence;
                   response_offsets [R + 1]: labels of response r lie in response_offsets[r]:response_offsets[r + 1];
                   prompt [R]

All are int64. Labels are -100 but for tokens of responses, and not shifted: a model's loss does that. Whatever a batch
carries beside them is integers too, because FSDP2 and DeepSpeed cast every float that a model is given: response
weights travel as the bits of their float64, which `weights_of` turns back, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern.integrations.data import checks
from mrtkern.integrations.data.rows import plain, read_row, shown
from mrtkern.integrations.step import IGNORE

LAYOUTS = ("padded", "padding_free")


def weights_of(batch: Mapping[str, Any]) -> Tensor | None:
    """The response weights of a batch, float64 [R], exact; None where it has none. Takes what models are given too."""
    bits = batch.get("response_weight_bits")
    return None if bits is None else bits.view(torch.float64)


class Response(NamedTuple):
    """One sequence of a batch."""

    prompt: list[int]
    response: list[int]
    weight: float | None


class ResponseCollator:
    """Turns rows of a dataset into a batch in which every response knows its prompt by an integer.

        collate = ResponseCollator(tokenizer)                            # a row is a prompt with its K responses
        collate = ResponseCollator(tokenizer, prompt_id="prompt_id")     # a row is one response

    Arguments
    ---------
    tokenizer : a tokenizer of transformers, optional
        Needed by texts and messages.
    prompt, responses : str
        The columns, as `read_row` reads them; with prompt_id `responses` holds the one response of the row.
    prompt_id : str, optional
        The column of what names the prompt of a row with one response, as `mrtkern.group` takes it: a text, a whole
        number, bytes or a UUID. None: every row is a prompt of its own, also where texts are equal.
    weight : str, optional
        A column of response weights, such as mrt_share: a number per response.
    layout : str
        "padded" or "padding_free", which for transformers needs attention that reads position_ids.
    max_length : int, optional
        Responses keep the first tokens that fit beside their prompt; a prompt is never cut.
    pad_token_id, pad_to_multiple_of : int, optional
        Of the padded layout, which pads on the right; None: the tokenizer's token, else 0, and multiples of 1.
    chat_template_kwargs : mapping, optional
        Handed on to tokenizer.apply_chat_template.

    Returns
    -------
    batch : dict
        The tensors that the head of this module lists. prompt [R]: 0 … P - 1 in order of appearance; with prompt_id
        also prompt_key [R], the same 64 bits for the same id on every rank. With weight response_weight_bits [R].

    Raises
    ------
    ValueError
        Naming column and row, as `read_row`; for an id that is missing, a weight that is no finite number, no rows.

    Memory
    ------
    The batch, and its tokens as lists.

    Determinism
    -----------
    The same rows give the same batch.

    Example
    -------
    >>> from mrtkern.integrations.data import ResponseCollator
    >>> collate = ResponseCollator()
    >>> batch = collate([{"prompt": [5, 6], "responses": [[7, 8], [9]]}, {"prompt": [5], "responses": [[9]]}])
    >>> batch["labels"].tolist(), batch["prompt"].tolist()
    ([[-100, -100, 7, 8], [-100, -100, 9, -100], [-100, 9, -100, -100]], [0, 0, 1])
    """

    op = "ResponseCollator"  # by whom rows are refused

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        prompt: str = "prompt",
        responses: str = "responses",
        prompt_id: str | None = None,
        weight: str | None = None,
        layout: str = "padded",
        max_length: int | None = None,
        pad_token_id: int | None = None,
        pad_to_multiple_of: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"{self.op}: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        max_length = None if max_length is None else checks.whole(self.op, "max_length", max_length, 1)
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        self.pad_to_multiple_of = checks.whole(self.op, "pad_to_multiple_of", multiple, 1)
        self.layout, self.prompt_id, self.weight, self.responses = layout, prompt_id, weight, responses
        pad_token_id = pad_token_id if pad_token_id is not None else getattr(tokenizer, "pad_token_id", None) or 0
        self.pad_token_id = checks.whole(self.op, "pad_token_id", pad_token_id, 0)
        self.reading: dict[str, Any] = {
            "tokenizer": tokenizer, "prompt": prompt, "responses": responses, "max_length": max_length, "op": self.op,
            "chat_template_kwargs": chat_template_kwargs,
        }  # fmt: skip

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch."""
        checks.some(self.op, rows)
        found, numbers, ids = [], [], []
        for i, row in enumerate(rows):
            where = f"row {i} of the batch"
            responses = self.read(row, where)
            found += responses
            numbers += [i] * len(responses)
            if self.prompt_id is not None:
                ids.append(row.get(self.prompt_id))
        batch = self.padded(found) if self.layout == "padded" else self.padding_free(found)
        if self.prompt_id is not None:
            batch["prompt"], batch["prompt_key"] = checks.numbered(self.op, self.prompt_id, ids)
        else:
            batch["prompt"] = integers(numbers)
        if self.weight is not None:
            batch["response_weight_bits"] = self.bits([response.weight for response in found])
        return batch

    def read(self, row: Mapping[str, Any], where: str) -> list[Response]:
        """The responses of a row, each with its prompt."""
        if self.prompt_id is not None and self.responses in row:
            row = {**row, self.responses: [row[self.responses]]}
        tokens = read_row(row, where=where, **self.reading)
        weights = self.weights(row, len(tokens.responses), where)
        return [Response(tokens.prompt, ids, v) for ids, v in zip(tokens.responses, weights, strict=True)]

    def weights(self, row: Mapping[str, Any], K: int, where: str) -> list[float | None]:
        """The weights of the responses of a row."""
        if self.weight is None:
            return [None] * K
        if self.weight not in row:
            raise ValueError(f"{self.op}: {where} must have a column {self.weight!r}, got {', '.join(row)}")
        given = plain(row[self.weight])
        given = [given] if self.prompt_id is not None else given
        is_right = isinstance(given, list) and len(given) == K and all(map(checks.is_number, given))
        if not is_right:
            rule = f"hold a finite number for each of {K} responses"
            raise ValueError(f"{self.op}: column {self.weight!r} must {rule}, got {shown(given)} in {where}")
        return [float(v) for v in given]

    def bits(self, weights: list[float | None]) -> Tensor:
        """As integers, which nobody casts."""
        return torch.tensor(weights, dtype=torch.float64, device="cpu").view(torch.int64)

    def padded(self, found: list[Response]) -> dict[str, Tensor]:
        """[R, L], padding on the right."""
        longest = max((len(r.prompt) + len(r.response) for r in found), default=0)
        L = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids = torch.full((len(found), L), self.pad_token_id, dtype=torch.int64, device="cpu")
        batch = {"input_ids": ids, "attention_mask": torch.zeros_like(ids), "labels": torch.full_like(ids, IGNORE)}
        for r, (prompt, response, _) in enumerate(found):
            end = len(prompt) + len(response)
            ids[r, :end] = integers(prompt + response)
            batch["attention_mask"][r, :end] = 1
            batch["labels"][r, len(prompt) : end] = ids[r, len(prompt) : end]
        return batch

    def padding_free(self, found: list[Response]) -> dict[str, Tensor]:
        """[1, T], one sequence after the other."""
        sizes = integers([0] + [len(r.prompt) + len(r.response) for r in found])
        offsets = sizes.cumsum(0)
        ids = integers([token for r in found for token in r.prompt + r.response])
        labels = integers([label for r in found for label in [IGNORE] * len(r.prompt) + r.response])
        positions = torch.arange(len(ids), dtype=torch.int64, device="cpu")
        positions -= torch.repeat_interleave(offsets[:-1], sizes[1:])
        batch = {"input_ids": ids[None], "position_ids": positions[None], "labels": labels[None]}
        return {**batch, "response_offsets": offsets}


def integers(values: list[int]) -> Tensor:
    """[len(values)] int64."""
    return torch.tensor(values, dtype=torch.int64, device="cpu")
