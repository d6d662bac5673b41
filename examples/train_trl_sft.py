"""Supervised training on several responses per prompt, with TRL: python examples/train_trl_sft.py

The model is tiny and random, so that this runs anywhere in seconds. With yours, two lines differ from a script for TRL:
the import of SFTTrainer, and its normalize=.
"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig

from mrtkern.integrations.trl import SFTTrainer

ANSWERS = {
    "name a colour": ["red", "blue", "a deep dark green"],
    "name a number": ["two"],
    "say hello": ["hello", "good morning to you"],
}


def main() -> None:
    """Trains three steps and prints the losses."""
    rows = [
        {"prompt": f"{prompt} :", "completion": f" {answer}", "prompt_id": i}
        for i, (prompt, answers) in enumerate(ANSWERS.items())
        for answer in answers
    ]
    text = " ".join(row["prompt"] + row["completion"] for row in rows)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(set(text.split()))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.add_special_tokens(["</s>"])
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            LlamaForCausalLM(config),
            args=SFTConfig(
                folder, per_device_train_batch_size=2, gradient_accumulation_steps=3, num_train_epochs=3,
                logging_steps=1, learning_rate=1e-2, bf16=False, report_to=[], save_strategy="no",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            normalize="prompt",  # prompts count equally, whatever number of responses they have
        )  # fmt: skip
        trainer.train()
    print([round(logged["loss"], 3) for logged in trainer.state.log_history[:-1]])


if __name__ == "__main__":
    main()
