"""Lightning: one callback, and an accumulated step equals one batch, the short last one too.

python examples/train_lightning.py
"""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from mrtkern.integrations.data import ResponseCollator
from mrtkern.integrations.lightning import StepCounts
from mrtkern.integrations.transformers import patch

CLASSES = 32


class Module(pl.LightningModule):
    """A model of transformers whose loss is the mean over prompts."""

    def __init__(self) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=CLASSES, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        self.model = patch(LlamaForCausalLM(config), "prompt")
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


def main() -> list[float]:
    """Trains for an epoch; returns the losses of its batches."""
    pl.seed_everything(0, verbose=False)
    rows = [
        {"prompt": [1, letter], "responses": [[letter] * (1 + (i + k) % 4) + [2] for k in range(1 + i % 3)]}
        for i in range(150)
        for letter in [3 + i % (CLASSES - 3)]
    ]
    loader = DataLoader(rows, batch_size=4, shuffle=True, collate_fn=ResponseCollator())
    trainer = pl.Trainer(
        max_epochs=2, accumulate_grad_batches=4, callbacks=[StepCounts("prompt")], accelerator="cpu", devices=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Module()
    trainer.fit(module, loader)
    return module.losses


if __name__ == "__main__":
    losses = main()
    print(f"loss of the first batch {losses[0]:.3f}, of the last {losses[-1]:.3f}")
