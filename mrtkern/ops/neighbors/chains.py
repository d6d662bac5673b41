"""Chains of linked rows: every row has a label, the lowest row of its chain as far as it is known."""

from __future__ import annotations

import torch
from torch import Tensor


def joined(labels: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """labels [N] int64 after rows i and j (int64, as many as there are links) are linked, pair by pair."""
    while True:
        a, b = labels[i], labels[j]
        if torch.equal(a, b):
            return labels
        labels = labels.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(labels, labels[labels]):
            labels = labels[labels]
