"""Plain PyTorch: several responses of every prompt, a step accumulated over batches, no logits.

python examples/train_plain.py
"""

import torch
from torch.utils.data import DataLoader

import mrtkern as mk
from mrtkern.integrations.data import ResponseCollator
from mrtkern.integrations.step import counted_steps, counts_of

CLASSES, FEATURES = 32, 16


class Model(torch.nn.Module):
    """Anything that gives hidden states, and a head whose weight is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(CLASSES, FEATURES)
        self.layers = torch.nn.GRU(FEATURES, FEATURES, batch_first=True)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(input_ids))[0]


def make_rows(num_prompts: int) -> list[dict[str, list]]:
    """A prompt names a letter; its responses repeat it one to four times, and end."""
    return [
        {"prompt": [1, letter], "responses": [[letter] * (1 + (i + k) % 4) + [2] for k in range(1 + i % 3)]}
        for i in range(num_prompts)
        for letter in [3 + i % (CLASSES - 3)]
    ]


def main() -> list[float]:
    """Trains for some steps; returns their losses."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    crit, losses = mk.MultiResponseCrossEntropyLoss("prompt"), []
    loader = DataLoader(make_rows(150), batch_size=8, shuffle=True, collate_fn=ResponseCollator())
    for _ in range(4):
        for batches in counted_steps(loader, accumulation=4):  # the last step of an epoch has fewer batches
            loss = torch.zeros(())
            for batch in batches:
                hidden, targets = model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
                part = crit(hidden, targets, weight=model.embedding.weight, prompt=batch["prompt"], **counts_of(batch))
                part.backward()
                loss += part.detach()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss of the first step {losses[0]:.3f}, of the last {losses[-1]:.3f}")
