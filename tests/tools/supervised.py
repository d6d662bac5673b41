"""Rows for SFTTrainer: prompts with 1 to 3 responses, and three steps of plain PyTorch on whole batches.

The truth knows nothing of mrtkern and TRL: the loss of a step, response by response, in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from tests.tools import oracle, rollouts, tokens

Row = dict[str, Any]
IGNORE = oracle.IGNORE


def rows(num_prompts: int = 6, seed: int = 0) -> list[Row]:
    """One response each: ids of 2 or 3 tokens of the prompt and 1 to 7 of the response."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(7, 40, (n,), generator=generator).tolist()  # noqa: E731
    found = []
    for p in range(num_prompts):
        prompt = draw(2 + p % 2)
        for k in range(1 + (2 * p) % 3):
            response = draw(1 + (3 * p + 2 * k) % 7)
            labels = [IGNORE] * len(prompt) + response
            weight = 1.0 + k
            found.append({"input_ids": prompt + response, "labels": labels, "prompt_id": f"p{p}", "weight": weight})
    return found


def response_losses(model: Any, given: Sequence[Row]) -> list[torch.Tensor]:
    """The losses of the labels of each row, float64."""
    found = []
    for row in given:
        log_p = model(torch.tensor([row["input_ids"]])).logits[0, :-1].double().log_softmax(-1)
        labels = torch.tensor(row["labels"][1:])
        is_learnt = labels != IGNORE
        found.append(-log_p[is_learnt].gather(1, labels[is_learnt][:, None])[:, 0])
    return found


def true_loss(model: Any, given: Sequence[Row], normalize: str) -> torch.Tensor:
    """The definition; with normalize "weight" the sum of v times the token mean, over the number of prompts."""
    losses = response_losses(model, given)
    by_prompt: dict[Any, list[torch.Tensor]] = {}
    for row, found in zip(given, losses, strict=True):
        by_prompt.setdefault(row["prompt_id"], []).append(found)
    if normalize == "weight":
        return sum(row["weight"] * found.mean() for row, found in zip(given, losses, strict=True)) / len(by_prompt)
    return oracle.normalized([*by_prompt.values()], normalize)


def truth(steps: Sequence[Sequence[Row]], normalize: str) -> list[torch.Tensor]:
    """Parameters after SGD on these steps."""
    model = rollouts.tiny()
    optimizer = torch.optim.SGD(model.parameters(), rollouts.RATE)
    for given in steps:
        true_loss(model, given, normalize).backward()
        optimizer.step()
        optimizer.zero_grad()
    return rollouts.parameters(model)


def trainer(
    cls: Any, folder: Any, given: Sequence[Row], *, config: Row | None = None, model: Any = None, **options: Any
) -> Any:
    """A trainer on these rows, in their order, with SGD on the CPU."""
    from trl import SFTConfig

    settings = {
        "output_dir": str(folder), "use_cpu": True, "optim": "sgd", "learning_rate": rollouts.RATE,
        "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "num_train_epochs": 3, "report_to": [],
        "disable_tqdm": True, "logging_steps": 1, "bf16": False, "save_strategy": "no", "shuffle_dataset": False,
        "train_sampling_strategy": "sequential", "gradient_checkpointing": False, "dataloader_pin_memory": False,
        "max_length": None,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options.setdefault("train_dataset", Dataset.from_list(list(given)))
        return cls(
            rollouts.tiny() if model is None else model,
            args=SFTConfig(**{**settings, **(config or {})}),
            processing_class=tokens.tokenizer(),
            **options,
        )


def split(batch_size: int, accumulation: int, **options: Any) -> Row:
    """Settings of a step of batch_size x accumulation rows."""
    return {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, **options}
