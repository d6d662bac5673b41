"""accelerate: a loop by steps, which equals one batch on any number of ranks.

accelerate launch examples/train_accelerate.py
"""

import contextlib

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from mrtkern.integrations.data import ResponseCollator
from mrtkern.integrations.step import counted_steps
from mrtkern.integrations.transformers import patch

CLASSES = 32


def main() -> list[float]:
    """Trains for two epochs; returns the losses of the steps."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=CLASSES, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = patch(LlamaForCausalLM(config), "prompt")
    rows = [
        {"prompt": [1, letter], "responses": [[letter] * (1 + (i + k) % 4) + [2] for k in range(1 + i % 3)]}
        for i in range(150)
        for letter in [3 + i % (CLASSES - 3)]
    ]
    loader = DataLoader(rows, batch_size=4, shuffle=True, collate_fn=ResponseCollator())
    accelerator = Accelerator(cpu=True)  # gradient_accumulation_steps=1: the loop below accumulates, and knows when
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.02), loader)
    losses = []
    ranks = accelerator.num_processes
    for _ in range(2):
        for batches in counted_steps(loader, 4, gather=accelerator.gather, parts=ranks):
            loss = torch.zeros((), device=accelerator.device)
            for i, batch in enumerate(batches):
                is_last = i == len(batches) - 1
                with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                    part = model(**batch).loss
                    accelerator.backward(part)
                loss += part.detach() / ranks
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(accelerator.reduce(loss)))
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss of the first step {losses[0]:.3f}, of the last {losses[-1]:.3f}")
