"""What an imitated device promises, held by a device as well: two sides that do not mix, and numbers that cross."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.gpu
IDS = torch.tensor([2, 0])


def numbers(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


MIXTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda here, there: there + here,
    "sum into the CPU": lambda here, there: here.add_(there),
    "product": lambda here, there: there @ here.T,
    "comparison": lambda here, there: torch.equal(there, here),
    "choice": lambda here, there: torch.where(there > 0, there, here),
    "rows of the CPU by numbers from the device": lambda here, there: here[IDS.cuda()],
    "stack": lambda here, there: torch.stack([here, there]),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_tensors_of_both_sides_do_not_mix(mixture: Callable[[Tensor, Tensor], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"device|cpu"):
        mixture(numbers(), numbers().cuda())


def test_a_kernel_takes_no_tensor_of_the_cpu() -> None:
    kernels = pytest.importorskip("mrtkern.ops.cross_entropy.triton", exc_type=ImportError)
    with pytest.raises(ValueError, match="cpu tensor"):
        kernels.scale(numbers().cuda(), torch.ones(()))


def test_what_a_device_takes_from_the_cpu() -> None:
    """A number without a dimension, row numbers, a copy."""
    here, there = numbers(), numbers().cuda()
    assert torch.equal((there * torch.tensor(2.0)).cpu(), 2 * here)
    assert torch.equal(there[IDS].cpu(), here[IDS])
    assert torch.equal(there[[2, 0]].cpu(), here[[2, 0]])
    there.copy_(numbers(1))
    there[[0, 2], 1:] = 0.0
    changed = numbers(1)
    changed[[0, 2], 1:] = 0.0
    assert torch.equal(there.cpu(), changed)
    assert there.tolist() == changed.tolist() and float(there.sum()) == pytest.approx(float(changed.sum()))


def test_what_is_made_of_a_tensor_is_on_its_device() -> None:
    there = numbers().cuda()
    made = [
        there.new_zeros(2), torch.empty_like(there), torch.arange(3, device=there.device), there[1], there.T,
        torch.tensor([1], device=there.device), torch.as_tensor([1], device="cuda"), numbers().to(there),
        there.double(), numbers().to("cuda"), torch.nn.functional.one_hot(there.argmax(1)), torch.stack([there] * 2),
        there.sort(1).indices, there.clone().zero_(),
    ]  # fmt: skip
    assert [value.device.type for value in made] == ["cuda"] * len(made)
    with pytest.raises(TypeError, match="cuda"):
        there.numpy()


def test_gradients_come_back_to_the_side_of_their_leaf() -> None:
    here, there = numbers().requires_grad_(), numbers(1).cuda().requires_grad_()
    ((here.cuda() * there).sum().cpu() * 3).backward()
    assert here.grad is not None and there.grad is not None
    assert here.grad.device.type == "cpu" and there.grad.device.type == "cuda"
    assert torch.equal(here.grad, 3 * there.detach().cpu())
    assert torch.equal(there.grad.cpu(), 3 * here.detach())
