"""No probability above 1 and no loss below 0, whatever is rounded: lse and a target come of one arithmetic."""

from __future__ import annotations

import itertools

import pytest
import torch

import mrtkern
from tests.tools.linear_heads import every_backend_and_triton
from tests.tools.losses import NARROW

CAPS = [{"temperature": 0.7}, {"temperature": 0.01}, {"softcap": 3.0}, {"softcap": 30.0, "temperature": 0.01}]
CLASSES = (1, 2, 33, 2049)  # one, a pair, an odd tail, more than a block of the compiled kernel and a tile of Triton's
ROWS = 12


def head(V: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states of one feature, so that logits are exact; the largest logit, which is far from the others or beside
    one of them, is the target."""
    generator = torch.Generator().manual_seed(V)
    hidden = torch.randn(ROWS, 1, generator=generator).mul_(20).to(dtype)
    weight = torch.randn(V, 1, generator=generator).to(dtype)
    return hidden, weight, (hidden.float() @ weight.float().T).argmax(1)


@every_backend_and_triton
@pytest.mark.parametrize("options", CAPS, ids=str)
@pytest.mark.parametrize("V", CLASSES)
def test_no_probability_exceeds_one(V: int, options: dict[str, float], backend: str) -> None:
    for dtype in NARROW:
        logp, entropy = mrtkern.linear_log_prob(*head(V, dtype), **options, backend=backend)
        assert float(logp.max()) <= 0
        assert float(entropy.min()) >= 0
        if V == 1:
            assert not logp.count_nonzero()
            assert not entropy.count_nonzero()


@every_backend_and_triton
def test_a_likely_target_is_no_more_than_certain(backend: str) -> None:
    hidden, weight = torch.tensor([[22.46]]), torch.tensor([[1.0], [0.0], [0.0]])
    logp, _ = mrtkern.linear_log_prob(hidden, weight, torch.tensor([0]), temperature=0.7, backend=backend)
    assert not bool(torch.log1p(-logp.exp()).isnan())
    assert float(logp) <= 0


@every_backend_and_triton
@pytest.mark.parametrize("softcap", [None, 3.0, 1.7])
def test_no_loss_is_negative(softcap: float | None, backend: str) -> None:
    """One row a call, because a sum over rows hides the sign of each; a large common part costs the mean its digits."""
    for V, smoothing, common in itertools.product((1, 3, 33), (0.0, 0.1, 1.0), (0.0, 1e8)):
        hidden, weight, targets = head(V, torch.float32)
        for t in range(3):
            logits = hidden[t : t + 1] @ weight.T + common
            options = {"label_smoothing": smoothing, "softcap": softcap, "backend": backend}
            loss = mrtkern.cross_entropy(logits, targets[t : t + 1], **options)
            assert isinstance(loss, torch.Tensor)
            assert float(loss) >= 0
            assert V > 1 or float(loss) == 0
