"""GRPO on 4 of 8 rollouts of every prompt, with TRL: python examples/train_trl_grpo.py

The model is tiny and random, so that this runs anywhere in seconds. With yours, two lines differ from a script for TRL:
the import of GRPOTrainer, and its keep=, method= and normalize=.
"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig

from mrtkern.integrations.trl import GRPOTrainer

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "count", "to", *NUMBERS]


def main() -> None:
    """Trains three steps and prints what was kept."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip

    def reward(completions: list[str], **_: object) -> list[float]:
        """How many different words a completion has."""
        return [float(len(set(text.split()))) for text in completions]

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            LlamaForCausalLM(config),
            reward_funcs=reward,
            args=GRPOConfig(
                folder, num_generations=8, per_device_train_batch_size=16, max_completion_length=8, max_steps=3,
                logging_steps=1, bf16=False, report_to=[], save_strategy="no",
            ),
            train_dataset=Dataset.from_dict({"prompt": [f"count to {word}" for word in NUMBERS]}),
            processing_class=tokenizer,
            keep=4,  # of 8: the forward and backward passes of training run on half of the rows
            method="max_variance",  # or random, stratified, coverage, …
            normalize="prompt",  # the mean over prompts of means over their rollouts
        )  # fmt: skip
        trainer.train()
    for logged in trainer.state.log_history[:-1]:
        print({name: round(value, 3) for name, value in logged.items() if name.startswith(("kept/", "loss", "reward"))})


if __name__ == "__main__":
    main()
