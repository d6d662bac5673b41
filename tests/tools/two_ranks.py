"""One of two processes of gloo in which TRL's trainers run; the first writes what came out.

RANK=0 WORLD_SIZE=2 … python -m tests.tools.two_ranks FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from mrtkern.integrations.trl import GRPOTrainer, SFTTrainer
from tests.tools import rollouts, supervised

ROWS = supervised.rows()
UNLEARNT = [
    {**row, "labels": [supervised.IGNORE] * len(row["labels"])} if i // 3 % 2 else row for i, row in enumerate(ROWS)
]
GRPO = {  # arguments of GRPOConfig, and those of the trainer
    "whole prompts": ({"per_device_train_batch_size": 8}, {}),
    "accumulated": ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, {"keep": 2}),
    "prompts over ranks": ({"per_device_train_batch_size": 6}, {"keep": 3}),
}
SFT = {  # rows, arguments of SFTConfig
    "padded": (ROWS, {}),
    "padding_free": (ROWS, {"padding_free": True}),
    "a rank without labels": (UNLEARNT, {}),
}
EVALUATED = ROWS[:11]  # in batches of 2 on 2 ranks: the last ones repeat rows


def refusal(trainer: Any) -> str:
    """What a trainer says that is to train after it evaluated."""
    try:
        trainer.train()
    except ValueError as error:
        return str(error)
    return "trained"


def main(folder: Path) -> None:
    """Runs all of them."""
    found: dict[str, Any] = {}
    for name, (config, options) in GRPO.items():
        made = rollouts.trainer(GRPOTrainer, folder, config=config, normalize="prompt", method="reward", **options)
        made.train()
        found[name] = rollouts.parameters(made.model)
    for name, (given, config) in SFT.items():
        config = supervised.split(3, 2, per_device_eval_batch_size=2, **config)
        options = {"config": config, "normalize": "prompt"}
        made = supervised.trainer(SFTTrainer, folder, given, eval_dataset=Dataset.from_list(EVALUATED), **options)
        found[f"eval {name}"] = made.evaluate()["eval_loss"]
        found[f"evaluated {name}"] = refusal(made)
        made = supervised.trainer(SFTTrainer, folder, given, **options)  # a model of its own, as yet without hooks
        made.train()
        found[name] = rollouts.parameters(made.model)
    if made.accelerator.process_index == 0:
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
