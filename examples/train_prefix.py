"""Trains a small model on four responses per prompt with transformers' Trainer, every prompt computed once.

    python examples/train_prefix.py

A prompt is a number, its responses are four sums that make it. The only line that shares the prompt is `data_collator`.
"""

from __future__ import annotations

import random
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from mrtkern.integrations.prefix import PrefixCollator

DIGITS, PLUS, END = 10, 10, 11  # tokens: the digits are themselves
QUESTION = list(range(12, 44))  # an instruction before every prompt


def digits(number: int) -> list[int]:
    """As tokens."""
    return [int(digit) for digit in str(number)]


def rows(count: int, seed: int = 0) -> list[dict[str, list[list[int]] | list[int]]]:
    """Numbers up to 99 with four of the sums that make them."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        number = draw.randint(10, 99)
        terms = [draw.randint(0, number) for _ in range(4)]
        responses = [[*digits(a), PLUS, *digits(number - a), END] for a in terms]
        found.append({"prompt": [*QUESTION, *digits(number)], "responses": responses})
    return found


def main(steps: int = 30) -> list[float]:
    """The losses, of which the last is the smallest."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=44, **sizes))
    tokenizer = None  # rows hold token ids
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=3e-3, remove_unused_columns=False,
            logging_steps=max(1, steps // 3), save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = Trainer(model, options, train_dataset=rows(256), data_collator=PrefixCollator(tokenizer, model))
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print("losses", *(f"{loss:.3f}" for loss in main()))
