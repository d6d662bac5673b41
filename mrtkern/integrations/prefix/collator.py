"""Batches in which the K responses of a prompt share one pass over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mrtkern.integrations import versions
from mrtkern.integrations.data import ResponseCollator, TokenRow, checks
from mrtkern.integrations.data.collator import integers
from mrtkern.integrations.prefix.attention import NAME
from mrtkern.integrations.prefix.layout import Layout
from mrtkern.integrations.prefix.refused import OP, why_not, without_adapters
from mrtkern.integrations.step import IGNORE


class PrefixCollator(ResponseCollator):
    """Puts prompts with all their responses into one row, every prompt once, and has the model read it so.

        trainer = Trainer(model, args, train_dataset=rows, data_collator=PrefixCollator(tokenizer, model))

    Loss and gradients are those of a row for each response: tokens have the positions that they have there, and see
    their prompt and what comes before them in their own response. A prompt of P tokens with K responses of R costs
    P - 1 + K (R + 1) tokens instead of K (P + R). RoPE that turns with the longest sequence of a batch ("dynamic",
    "longrope") turns with the longest of the row, as in one padded batch.

    Arguments
    ---------
    tokenizer : a tokenizer of transformers, optional
        Needed by texts and messages; None where rows hold token ids.
    model : a model of transformers
        Its attention becomes "mrtkern_prefix", which reads these batches, and any other as "sdpa" does.
    prompt, responses : str
        The columns of a row, which is a prompt with its K responses, as `read_row` reads them.
    weight : str, optional
        A column of response weights, a number per response: response_weight_bits [R] of a batch, see `weights_of`.
    max_length : int, optional
        Of a prompt and one response; responses keep the first tokens that fit.
    chat_template_kwargs : mapping, optional
        Handed on to tokenizer.apply_chat_template.

    Returns
    -------
    batch : dict
        input_ids, position_ids, labels [1, T]; attention_mask, what `layout` describes; response_offsets [R + 1]: the
        labels of response r lie in response_offsets[r]:response_offsets[r + 1]; prompt [R]: 0 … P - 1. All int64.

    Raises
    ------
    ValueError
        For a model that would not be exact, with the reason: another mixture of tokens than full or sliding attention,
        cross-attention, positions of its own. For rows, as `read_row`, and for none. In the attention, for a batch that
        was split and for attention sinks.

    Memory
    ------
    The batch. The attention keeps no scores, but those of one piece at a time under a softcap or dropout.

    Devices
    -------
    On the CPU torch's fused kernel on parts; on CUDA FlexAttention with a BlockMask; plain PyTorch for the rest. To
    torch.compile the attention of these batches is a break in every layer.

    Determinism
    -----------
    The same rows give the same batch. Dropout draws once for a prompt, not K times.

    Example
    -------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from mrtkern.integrations.prefix import PrefixCollator
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> collate = PrefixCollator(None, LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)))
    >>> batch = collate([{"prompt": [3, 4, 5], "responses": [[6, 7], [8]]}])
    >>> batch["input_ids"].tolist(), batch["position_ids"].tolist()
    ([[3, 4, 5, 6, 7, 5, 8]], [[0, 1, 2, 3, 4, 2, 3]])
    >>> batch["labels"].tolist(), batch["response_offsets"].tolist()
    ([[-100, -100, -100, 6, 7, -100, 8]], [0, 5, 7])
    """

    op = OP

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        *,
        prompt: str = "prompt",
        responses: str = "responses",
        weight: str | None = None,
        max_length: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            tokenizer, prompt=prompt, responses=responses, weight=weight, max_length=max_length,
            layout="padding_free", chat_template_kwargs=chat_template_kwargs,
        )  # fmt: skip
        versions.warn_outside("transformers")
        reason = why_not(model)
        if reason is not None:
            raise ValueError(f"{OP}: model must {reason}")
        without_adapters(model).set_attn_implementation(NAME)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch."""
        checks.some(self.op, rows)
        found = [self.read(row, f"row {i} of the batch") for i, row in enumerate(rows)]
        batch = pack([TokenRow(row[0].prompt, [one.response for one in row]) for row in found])
        if self.weight is not None:
            batch["response_weight_bits"] = self.bits([one.weight for row in found for one in row])
        return batch


def pack(rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """One row of tokens: of every prompt all but its last token, then that before each response."""
    ids: list[int] = []
    labels: list[int] = []
    offsets = [0]
    for (*prefix, last), responses in rows:
        ids += prefix
        labels += [IGNORE] * len(prefix)
        for response in responses:
            ids += [last, *response]
            labels += [IGNORE, *response]
            offsets.append(len(ids))
    layout = Layout(tuple((len(row.prompt) - 1, *(1 + len(ids) for ids in row.responses)) for row in rows))
    numbers = [i for i, row in enumerate(rows) for _ in row.responses]
    return {
        "input_ids": integers(ids)[None],
        "position_ids": layout.positions()[None],
        "labels": integers(labels)[None],
        "attention_mask": layout.mask(),
        "response_offsets": integers(offsets),
        "prompt": integers(numbers),
    }
