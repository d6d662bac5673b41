"""The programs a good user would otherwise write, and the packages they would otherwise call.

Selection programs take x [T, D] of B equal groups of N rows and return the kept rows of each group [B, K], numbered
within their group, in pick order. All of them maximise the same F with s = (1 + cos) / 2, greedily.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def greedy(s: Tensor, K: int) -> Tensor:
    """Batched greedy on s [B, N, N]: all groups at once, two passes over s a step."""
    B, N, _ = s.shape
    groups = torch.arange(B, device=s.device)
    picks = groups.new_empty(B, K)
    is_kept = torch.zeros(B, N, dtype=torch.bool, device=s.device)
    rest = torch.empty_like(s)
    best = s.new_zeros(B, N)
    gains = s.sum(2)  # [B, N]: nothing is covered yet
    for step in range(K):
        j = gains.argmax(1)
        picks[:, step] = j
        is_kept[groups, j] = True
        torch.maximum(best, s[groups, j], out=best)
        if step + 1 < K:
            torch.sub(s, best.unsqueeze(1), out=rest)
            gains = rest.relu_().sum(2).masked_fill_(is_kept, -1.0)
    return picks


def torch_program(x: Tensor, B: int, N: int, K: int) -> Tensor:
    """Normalise, one batched product, batched greedy. Scores are summed in float32: bfloat16 sums would tie."""
    u = F.normalize(x.view(B, N, -1), dim=-1)
    s = torch.bmm(u, u.transpose(1, 2)).float()
    return greedy(s.add_(1.0).mul_(0.5), K)


def torch_diagonal(x: Tensor, B: int, N: int, K: int) -> Tensor:
    """The same with the norms taken from the diagonal of the product: no normalised copy of x is ever written."""
    x = x.view(B, N, -1)
    s = torch.bmm(x, x.transpose(1, 2)).float()
    scale = s.diagonal(dim1=1, dim2=2).rsqrt()  # [B, N]
    return greedy(s.mul_(scale.unsqueeze(1)).mul_(scale.unsqueeze(2)).add_(1.0).mul_(0.5), K)


def sklearn_rbf(x: Tensor, gamma: float) -> Tensor:
    """exp(-gamma |x_i - x_j|^2) of all pairs of rows."""
    from sklearn.metrics.pairwise import rbf_kernel

    return torch.from_numpy(rbf_kernel(x.numpy(), gamma=gamma))


def numpy_similarity(x: Tensor, B: int, N: int) -> np.ndarray:
    """(1 + cos) / 2 of every group [B, N, N], float32: numpy knows no bfloat16."""
    u = x.float().numpy().reshape(B, N, -1)
    u = u / np.linalg.norm(u, axis=2, keepdims=True)
    s = u @ u.transpose(0, 2, 1)
    s += 1.0
    s *= 0.5
    return s


def numpy_program(x: Tensor, B: int, N: int, K: int) -> Tensor:
    """The torch program in numpy."""
    s = numpy_similarity(x, B, N)
    groups = np.arange(B)
    picks = np.empty((B, K), np.int64)
    is_kept = np.zeros((B, N), bool)
    best = np.zeros((B, N), np.float32)
    rest = np.empty_like(s)
    for step in range(K):
        np.subtract(s, best[:, None], out=rest)
        np.maximum(rest, 0.0, out=rest)
        gains = rest.sum(2)
        gains[is_kept] = -1.0
        j = gains.argmax(1)
        picks[:, step] = j
        is_kept[groups, j] = True
        best = np.maximum(best, s[groups, j])
    return torch.from_numpy(picks)


def has_submodlib() -> bool:
    """Whether submodlib-py is installed."""
    return importlib.util.find_spec("submodlib") is not None


def submodlib_program(x: Tensor, B: int, N: int, K: int) -> Tensor:
    """submodlib's lazy greedy, one object per group, on similarities made by numpy in one product."""
    from submodlib import FacilityLocationFunction

    picks = []
    for s in numpy_similarity(x, B, N):
        function = FacilityLocationFunction(n=N, mode="dense", sijs=s, separate_rep=False)
        kept = function.maximize(
            budget=K, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
        )
        picks.append([j for j, _ in kept])
    return torch.tensor(picks)


def torch_cosines(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of the rows of x [.., M, D] with those of y [.., N, D], in the type of x."""
    u = F.normalize(x, dim=-1)
    return u @ (u if y is x else F.normalize(y, dim=-1)).mT


def torch_cosines_diagonal(x: Tensor) -> Tensor:
    """Cosines of x [B, M, D] with itself, the norms taken from the diagonal of the product."""
    s = torch.bmm(x, x.mT)
    scale = s.diagonal(dim1=1, dim2=2).rsqrt()  # [B, M]
    return s.mul_(scale.unsqueeze(1)).mul_(scale.unsqueeze(2))


def numpy_cosines(x: Tensor, y: Tensor) -> Tensor:
    """torch_cosines in numpy, float32."""
    u = x.float().numpy()
    v = u = u / np.linalg.norm(u, axis=-1, keepdims=True)
    if y is not x:
        v = y.float().numpy()
        v = v / np.linalg.norm(v, axis=-1, keepdims=True)
    return torch.from_numpy(u @ v.swapaxes(-1, -2))
