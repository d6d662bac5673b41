"""linear_cross_entropy in PyTorch: the definition that every other backend is tested against. Any device, any type."""

from __future__ import annotations

import torch
from torch import Tensor

from mrtkern.ops.linear_cross_entropy.problem import Problem
from mrtkern.ops.linear_cross_entropy.rows import Entries, Options, Results


def why_not(problem: Problem) -> str | None:
    """The reference runs everything."""
    return None


def multiplies(problem: Problem) -> torch.dtype:
    """The type of products and logits: as wide as the sums."""
    return torch.float64 if problem.product == torch.float64 else torch.float32


def chunk_size(problem: Problem) -> int:
    """All rows at once."""
    return problem.T


def forward(
    z: Tensor, given: Entries, options: Options, *, entropy_weight: Tensor | None = None,
    given_lse: Tensor | None = None, wants_gradient: bool = False, wants: tuple[str, ...] = (),
) -> Results:  # fmt: skip
    """Losses of rows of logits z [C, V], which become dL/dz where the gradient is wanted.

    A target below 0 is a class that is not among V; given_lse [C] then replaces the rows' own.
    """
    tanh = torch.tanh(z / options.softcap) if options.softcap else None
    u = options.scale * (z if tanh is None else options.softcap * tanh)
    lse = u.logsumexp(1) if given_lse is None else given_lse.to(u.dtype)  # [C]
    log_p = u - lse[:, None]
    p = log_p.exp()
    entropy = -(p * log_p.clamp(min=torch.finfo(u.dtype).min)).sum(1)
    sizes = torch.ones_like(lse, dtype=torch.int64) if given.offsets is None else given.offsets.diff()
    row = torch.repeat_interleave(torch.arange(z.shape[0], device=z.device), sizes)  # [E]
    w, is_here = given.weight, given.targets >= 0
    column = given.targets.clamp(min=0)
    nll = lse[row] - torch.where(is_here, u[row, column], 0)
    smoothing = options.label_smoothing
    each = (1 - smoothing) * nll + options.z_loss * lse[row] ** 2
    if smoothing:
        each += smoothing * (lse - u.mean(1))[row]
    loss = torch.where(w == 0, 0, w * each).double().sum()
    if entropy_weight is not None:
        loss += (entropy_weight * entropy).double().sum()
    if wants_gradient:
        mass = torch.zeros_like(lse).index_add_(0, row, w)[:, None]
        du = mass * (p * (1 + 2 * options.z_loss * lse[:, None]) - smoothing / z.shape[1])
        if entropy_weight is not None:
            du -= entropy_weight[:, None] * p * (log_p.clamp(min=torch.finfo(u.dtype).min) + entropy[:, None])
        du.index_put_((row, column), torch.where(is_here, (smoothing - 1) * w, 0), accumulate=True)
        z.copy_(du * options.scale * (1 if tanh is None else 1 - tanh**2))
    known = {"nll": nll, "entropy": entropy, "argmax": u.argmax(1), "lse": lse.double()}
    return Results(float(loss), **{name: known[name] for name in wants})
