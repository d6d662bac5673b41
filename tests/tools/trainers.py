"""What the tests of integrations share: tiny models, ragged rows, and three steps of plain PyTorch on whole batches.

The truth knows nothing of mrtkern: the loss of a step is written out response by response, in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from mrtkern.integrations.data import ResponseCollator
from tests.tools import oracle

V, PROMPTS_A_STEP, RATE = 61, 4, 0.1
NORMALIZATIONS = ("token", "response", "prompt", "prompt_token", "prompt_sum")
SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def tiny(name: str = "Llama", **options: Any) -> Any:
    """A model of one layer, the same numbers every time."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
    return getattr(transformers, f"{name}ForCausalLM")(config)


def ragged_rows(num_prompts: int = 11, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with 1 to 3 responses of 1 to 8 tokens; 11 prompts are steps of 4, 4 and 3."""
    g = torch.Generator().manual_seed(seed)

    def tokens(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (1,), generator=g))
        return torch.randint(3, V, (length,), generator=g).tolist()

    return [
        {"prompt": tokens(1, 4), "responses": [tokens(1, 8) for _ in range(1 + (2 * i) % 3)]}
        for i in range(num_prompts)
    ]


def single_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as rows with one response each, prompts by number."""
    return [
        {"prompt": row["prompt"], "response": response, "prompt_id": i}
        for i, row in enumerate(rows)
        for response in row["responses"]
    ]


def collate(rows: Sequence[dict[str, Any]], **options: Any) -> dict[str, Tensor]:
    """A batch of rows with one prompt each."""
    return ResponseCollator(**options)(rows)


def true_loss(model: Any, batch: dict[str, Tensor], normalize: str) -> Tensor:
    """The definition, for a padded batch and a model that is not patched: v = 1 / K, or 1 under "prompt_token"."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
    nll: dict[int, list[Tensor]] = {}
    for row, labels, prompt in zip(logits, batch["labels"], batch["prompt"].tolist(), strict=True):
        is_valid = labels[1:] != oracle.IGNORE
        if is_valid.any():
            log_p = row[:-1].log_softmax(-1)
            found = -log_p[is_valid].gather(1, labels[1:][is_valid][:, None])[:, 0]
            nll.setdefault(prompt, []).append(found)
    return oracle.normalized([*nll.values()], normalize)


def steps_of(rows: Sequence[Any], size: int = PROMPTS_A_STEP) -> list[Sequence[Any]]:
    """Rows in their order, as many as make a step; the last may have fewer."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def one_batch(
    model: Any, steps: Iterable[dict[str, Tensor]], normalize: str, added: Any = None
) -> tuple[list[Tensor], list[float]]:
    """Parameters, and losses, of SGD on whole steps; `added(model, batch)` is a further term."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)
    losses = []
    for batch in steps:
        loss = true_loss(model, batch, normalize) + (0 if added is None else added(model, batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return [p.detach().clone() for p in model.parameters()], losses


def largest_difference(model: Any, truth: Sequence[Tensor]) -> float:
    """Of parameters, relative to the largest of theirs."""
    pairs = list(zip(model.parameters(), truth, strict=True))
    return max(float((p.detach() - q).abs().max() / q.abs().max().clamp(min=1e-30)) for p, q in pairs)


def arguments(folder: Any, batch_size: int, accumulation: int, **options: Any) -> transformers.TrainingArguments:
    """One epoch of SGD without anything else, on the CPU."""
    given = {
        "optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "use_cpu": True,
        "num_train_epochs": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_steps": 1,
        "remove_unused_columns": False, "per_device_train_batch_size": batch_size, "dataloader_pin_memory": False,
        "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.TrainingArguments(output_dir=str(folder), **{**given, **options})


def in_order(trainer: type) -> type:
    """The same trainer on rows in their order."""

    class InOrder(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder
