"""linear_cross_entropy in PyTorch: the definition that every other backend is tested against. Any device, any type.

The loss of rows of logits is that of `mrtkern.ops.cross_entropy.reference`; here is what else a linear head is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrtkern import _sums
from mrtkern.ops.cross_entropy import reference as cross_entropy
from mrtkern.ops.cross_entropy.problem import Options, Rows
from mrtkern.ops.linear_cross_entropy.library import Products
from mrtkern.ops.linear_cross_entropy.problem import NO_TARGET, Cap, LogProbs, Problem


def why_not(problem: Problem) -> str | None:
    """The reference runs everything."""
    return None


def multiplies(problem: Problem) -> torch.dtype:
    """The type of products and logits: as wide as the sums."""
    return torch.float64 if problem.product == torch.float64 else torch.float32


def products(weight: Tensor, bias: Tensor | None, product: torch.dtype) -> Products:
    """What multiplies."""
    return Products(weight, bias, product)


def chunk_size(problem: Problem) -> int:
    """All rows at once."""
    return problem.T


def memory(problem: Problem) -> int:
    """Bytes of the work on a chunk of logits beyond the chunk: eight matrices of its size, the converted weight."""
    return (8 * problem.T + problem.D) * problem.V * multiplies(problem).itemsize


def forward(
    z: Tensor, targets: Tensor, token_weight: Tensor, target_offsets: Tensor | None, options: Options,
    gradient: Tensor | None, wants_details: bool,
) -> Rows:  # fmt: skip
    """The loss of rows of logits z [C, V]; dL/dz goes to `gradient`, which may be z."""
    return cross_entropy.forward(z, targets, token_weight, target_offsets, options, gradient, wants_details)


def logsumexp(u: Tensor) -> Tensor:
    """log sum exp over the classes [C], whose bits in torch may depend on the number of threads."""
    m = u.amax(1)
    m = torch.where(m.isfinite(), m, 0)
    return m + _sums.along_rows((u - m[:, None]).exp()).log()


def log_probs(z: Tensor, targets: Tensor, cap: Cap, wants_below: bool = False) -> LogProbs:
    """Of rows of logits z [C, V]; targets [C] are classes."""
    z = cross_entropy.wide(z)
    u = (cap.softcap * torch.tanh(z / cap.softcap) if cap.softcap else z) / cap.temperature
    largest = u.amax(1)  # [C]
    d = u - largest[:, None]  # so that digits of large logits are kept, and no probability exceeds 1
    log_sum = _sums.along_rows(d.exp()).log()
    log_p = d - log_sum[:, None]
    p = log_p.exp()
    y = targets.clamp(0, z.shape[1] - 1)  # what is not among V was refused before wherever values may be read
    logp = torch.where(y == targets, log_p.gather(1, y[:, None])[:, 0], torch.nan)
    below = log_sum - _sums.along_rows(d) / z.shape[1] if wants_below else None
    counts = targets != NO_TARGET
    entropy = -_sums.along_rows(torch.special.xlogy(p, p))
    logp, entropy, lse = (torch.where(counts, value, 0) for value in (logp, entropy, largest.double() + log_sum))
    return LogProbs(logp, entropy, lse, below)


def log_probs_backward(
    z: Tensor, targets: Tensor, cap: Cap, w: Tensor, c: Tensor | None, *, gradient: Tensor | None = None,
    z_loss: float = 0.0, lse: Tensor | None = None, label_smoothing: float = 0.0, classes: Tensor | None = None,
) -> None:  # fmt: skip
    """The gradient of sum_t w_t (z_loss lse_t^2 - logp_t) + c_t H_t goes to `gradient`, or replaces z [C, V].

    lse [C] is given where z has a part of the classes: targets among the others are negative then, and c is None;
    logp becomes (1 - label_smoothing) logp + label_smoothing (mean of u over all classes - lse), as many as `classes`
    (None where there are no rows).
    """
    x = cross_entropy.wide(z)
    tanh = torch.tanh(x / cap.softcap) if cap.softcap else x.new_zeros(1)
    u = (cap.softcap * tanh if cap.softcap else x) / cap.temperature
    lse = logsumexp(u) if lse is None else lse
    log_p = (u - lse[:, None]).to(u.dtype)  # a given lse is float64: rounded with u, not before
    p = log_p.exp()
    lse = lse.to(u.dtype)
    du = (w * (1 + 2 * z_loss * lse))[:, None] * p
    if c is not None:
        finite = log_p.clamp(min=torch.finfo(u.dtype).min)  # p log p is 0 where p is
        entropy = -_sums.along_rows(p * finite)
        du -= c[:, None] * p * (finite + entropy[:, None])
    if label_smoothing and classes is not None:
        du -= (w * label_smoothing / classes)[:, None]
    own = torch.where(targets >= 0, (label_smoothing - 1) * w, 0)
    du.scatter_add_(1, targets.clamp(0, z.shape[1] - 1)[:, None], own[:, None])
    counts = (w != 0) if c is None else (w != 0) | (c != 0)
    dz = du * (1 - tanh**2) / cap.temperature
    (z if gradient is None else gradient).copy_(torch.where((counts & (targets != NO_TARGET))[:, None], dz, 0))
