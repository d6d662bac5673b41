"""transformers: Trainer from mrtkern instead of transformers, and every step equals one batch.

python examples/train_transformers.py
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from mrtkern.integrations.data import ResponseCollator
from mrtkern.integrations.transformers import Trainer  # was: from transformers import Trainer

CLASSES = 32


def make_rows(num_prompts: int) -> list[dict[str, list]]:
    """A prompt names a letter; its responses repeat it one to four times, and end."""
    return [
        {"prompt": [1, letter], "responses": [[letter] * (1 + (i + k) % 4) + [2] for k in range(1 + i % 3)]}
        for i in range(num_prompts)
        for letter in [3 + i % (CLASSES - 3)]
    ]


def main() -> tuple[float, float]:
    """Trains for an epoch; returns eval_loss before and after."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=CLASSES, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            learning_rate=0.02,
            remove_unused_columns=False,  # the collator reads the columns
            prediction_loss_only=True,  # then evaluation makes no logits either
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            LlamaForCausalLM(config),
            arguments,
            normalize="prompt",
            data_collator=ResponseCollator(),
            train_dataset=make_rows(150),
            eval_dataset=make_rows(30),
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        return before, trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    before, after = main()
    print(f"eval_loss {before:.3f} before, {after:.3f} after")
