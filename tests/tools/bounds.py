"""How far the results of each operation may be from the truth, by following every rounding on the way to them.

A `Bounded` is a true value and the largest error that computing it may have made so far. Arithmetic on it carries
errors on and adds its own rounding, u the unit roundoff of the type that sums (Higham, Accuracy and Stability, 2002,
3.3). What an operation computes is written here once more with such numbers: so the bounds of its results follow from
the sizes and the values of its inputs, never from what a product of torch's happened to err on the machine at hand.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.tools import oracle

CERTAINTY = 6.0  # standard deviations


def roundings(n: int) -> float:
    """Of the units of `n` roundings in a row, how many add up: all of few; of many as often up as down 6 sqrt(n), which
    is exceeded once in 10**8 sums (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, theorem 3.1)."""
    return min(float(n), CERTAINTY * n**0.5)


@dataclass(frozen=True)
class Bounded:
    """A true value, the largest error of the number computed for it, and one rounding of that number, relative."""

    value: Tensor
    error: Tensor
    u: float

    def __add__(self, other: Bounded) -> Bounded:
        value = self.value + other.value
        return Bounded(value, self.error + other.error + self.u * value.abs(), self.u)

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error, self.u)

    def __sub__(self, other: Bounded) -> Bounded:
        return self + -other

    def __mul__(self, other: Bounded | Tensor | float) -> Bounded:
        b = other if isinstance(other, Bounded) else exact(other, self.u)
        value = self.value * b.value
        carried = self.value.abs() * b.error + self.error * (b.value.abs() + b.error)
        return Bounded(value, carried + self.u * value.abs(), self.u)

    def __matmul__(self, other: Bounded) -> Bounded:
        sizes = self.value.abs() @ other.value.abs()
        carried = self.value.abs() @ other.error + self.error @ (other.value.abs() + other.error)
        return Bounded(self.value @ other.value, carried + roundings(self.value.shape[-1]) * self.u * sizes, self.u)

    def __getitem__(self, at: object) -> Bounded:
        return Bounded(self.value[at], self.error[at], self.u)  # type: ignore[index]

    @property
    def mT(self) -> Bounded:  # as torch says it
        return Bounded(self.value.mT, self.error.mT, self.u)

    def sum(self, dim: int, steps: float | None = None) -> Bounded:
        """Of all numbers along `dim`, kept; `steps` roundings in a row, if not one for each."""
        steps = roundings(self.value.shape[dim]) if steps is None else min(steps, self.value.shape[dim])
        carried, sizes = self.error.sum(dim, keepdim=True), self.value.abs().sum(dim, keepdim=True)
        return Bounded(self.value.sum(dim, keepdim=True), carried + steps * self.u * (sizes + carried), self.u)

    def exp(self) -> Bounded:
        value = self.value.exp()
        return Bounded(value, value * (torch.expm1(self.error) + oracle.EXPONENTIAL * self.u), self.u)

    def log(self) -> Bounded:
        value = self.value.log()
        return Bounded(value, -torch.log1p(-self.error / self.value) + self.u * value.abs(), self.u)

    def tanh(self) -> Bounded:
        """Of slope 1 at most; an exponential and a quotient."""
        value = self.value.tanh()
        return Bounded(value, self.error + (oracle.EXPONENTIAL + 2) * self.u * value.abs(), self.u)

    def rounded(self, dtype: torch.dtype) -> Bounded:
        """As it is passed on in a narrower type."""
        more = oracle.one_rounding(self.value.abs() + self.error, dtype)
        return Bounded(self.value, self.error + more, self.u)


def exact(x: Tensor | float, u: float) -> Bounded:
    """A number that is given, or that has no error in the type that sums."""
    value = x.detach().double() if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
    return Bounded(value, torch.zeros_like(value), u)


def where(condition: Tensor, a: Bounded, b: Bounded) -> Bounded:
    """a where the condition holds, b elsewhere."""
    return Bounded(torch.where(condition, a.value, b.value), torch.where(condition, a.error, b.error), a.u)


def assert_bounded(got: Tensor, truth: Bounded) -> None:
    """Within twice the bound, and one rounding of the type of the result; in float64 the truth may be as far off."""
    oracle.assert_within(got, truth.value, truth.error * (4 if got.dtype == torch.float64 else 2))


def unit_of(dtype: torch.dtype) -> float:
    """Unit roundoff of the type that sums products of `dtype`."""
    return oracle.roundoff(oracle.sums_in(dtype))


# similarity


def _unit_rows(x: Tensor, u: float) -> tuple[Bounded, Bounded]:
    """Rows over their lengths, and 1 over these; half the roundings of a square go into its root."""
    length = x.double().norm(dim=-1, keepdim=True)
    inverse = torch.where(length > 0, 1 / length, 0)
    steps = roundings(x.shape[-1]) / 2 + 2
    return tuple(Bounded(v, (steps + extra) * u * v.abs(), u) for v, extra in ((x.double() * inverse, 1), (inverse, 0)))  # type: ignore[return-value]


def _scores(x: Tensor, y: Tensor, metric: str, gamma: float, u: float) -> Bounded:
    if metric == "dot":
        return exact(x, u) @ exact(y, u).mT
    if metric == "rbf":  # all terms of the square are positive
        square = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        return (Bounded(square, (roundings(x.shape[-1]) + 3) * u * square, u) * -gamma).exp()
    cos = _unit_rows(x, u)[0] @ _unit_rows(y, u)[0].mT
    if metric == "shifted_cosine":
        return (cos + exact(1.0, u)) * 0.5
    return cos if metric == "cosine" else Bounded(cos.value.clamp(min=0), cos.error, u)


def _slopes(grad: Tensor, x: Tensor, y: Tensor, metric: str, gamma: float, u: float) -> Bounded:
    """The gradient of the scores carried back through the metric. A clamped cosine within its error of 0 has either."""
    given = exact(grad, u)
    if metric == "rbf":
        return given * _scores(x, y, metric, gamma, u) * (-2 * gamma)
    if metric == "clamped_cosine":
        cos = _scores(x, y, "cosine", gamma, u)
        either = torch.where(cos.value.abs() <= 2 * cos.error, given.value.abs(), 0)
        return Bounded(torch.where(cos.value > 0, given.value, 0), either, u)
    return given * 0.5 if metric == "shifted_cosine" else given


def _pull(w: Bounded, x: Tensor, y: Tensor, metric: str) -> Bounded:
    u = w.u
    if metric == "dot":
        return w @ exact(y, u)
    if metric == "rbf":
        return w.sum(-1) * exact(x, u) - w @ exact(y, u)
    a, inverse = _unit_rows(x, u)
    d = w @ _unit_rows(y, u)[0]
    return (d - a * (a * d).sum(-1)) * inverse


def similarity(
    grad: Tensor, x: Tensor, y: Tensor | None = None, *, metric: str = "cosine", offsets: Tensor | None = None,
    gamma: float = 1.0,
) -> list[Bounded]:  # fmt: skip
    """Scores, and the gradients of x and y under `grad`."""
    u, x = unit_of(x.dtype), x.detach()
    if offsets is not None:
        ends, cells = offsets.tolist(), offsets.diff().square().tolist()
        parts = [
            similarity(g.view(j - i, j - i), x[i:j], metric=metric, gamma=gamma)
            for (i, j), g in zip(itertools.pairwise(ends), grad.split(cells), strict=True)
        ]
        flat = [[Bounded(v.value.flatten(k), v.error.flatten(k), u) for k, v in enumerate(part)] for part in parts]
        return [
            Bounded(torch.cat([v.value for v in values]), torch.cat([v.error for v in values]), u)
            for values in zip(*flat, strict=True)
        ]
    other = x if y is None else y.detach()
    s, w = (part(x, other, metric, gamma, u) for part in (_scores, functools.partial(_slopes, grad)))
    if y is None:
        return [s, _pull(w + w.mT, x, x, metric)]
    return [s, _pull(w, x, other, metric), _pull(w.mT, other, x, metric)]


# Losses of logits


@dataclass(frozen=True)
class Losses:
    """A loss of logits, its details, and its gradient with respect to them."""

    loss: Bounded
    nll: Bounded  # one per target
    weighted: Bounded
    entropy: Bounded  # mean over targets
    gradient: Bounded


def _over_classes(x: Bounded) -> Bounded:
    """A sum over classes: float32 inside a block, float64 across blocks."""
    return x.sum(1, oracle.LANE_SUM)


def _capped(z: Bounded, softcap: float | None) -> tuple[Bounded, Bounded]:
    """The logits that count, and their slope."""
    if not softcap:
        return z, exact(torch.ones(()), z.u)
    t = (z * (1 / softcap)).tanh()
    return t * softcap, exact(1.0, z.u) - t * t


def cross_entropy(
    logits: Bounded, targets: Tensor, *, token_weight: Tensor | None = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None,
    target_offsets: Tensor | None = None,
) -> Losses:  # fmt: skip
    """The loss of finite logits, its details and gradient."""
    given, u = logits, logits.u
    T, V = given.value.shape
    rows = torch.arange(T).repeat_interleave(
        torch.ones(T, dtype=torch.int64) if target_offsets is None else target_offsets.diff()
    )
    is_valid = targets != ignore_index
    y = torch.where(is_valid, targets, 0)
    uniform = torch.full(targets.shape, 1 / max(int(is_valid.sum()), 1), dtype=torch.float64)
    w = uniform if token_weight is None else token_weight.double()
    weight = torch.where(is_valid, w, 0)[:, None]  # one per target

    c, slope = _capped(given, softcap)
    largest = c.value.argmax(1, keepdim=True)
    m = Bounded(c.value.gather(1, largest), c.error.gather(1, largest), u)
    d = c - m
    log_sum = _over_classes(d.exp()).log()
    lse = m + log_sum
    p = (d - log_sum).exp()
    nll = log_sum[rows] - d[rows, y][:, None]
    each = nll * (1 - label_smoothing) + lse[rows] * lse[rows] * z_loss
    if label_smoothing:
        mean = _over_classes(d) * (1 / V)
        each = each + (log_sum - mean)[rows] * label_smoothing
    rounded_weight = Bounded(weight, u * weight.abs(), u)
    weighted = where(weight != 0, each * rounded_weight, exact(torch.zeros(()), u))

    once = functools.partial(torch.zeros(T, 1, dtype=torch.float64).index_add, 0, rows)
    a = Bounded(once(weight), roundings(max(1, len(targets))) * u * once(weight.abs()), u) * (
        exact(1.0, u) + lse * (2 * z_loss)
    )
    own = weight * (1 - label_smoothing)
    at = rows * V + y
    cells = torch.zeros(T * V, dtype=torch.float64)
    direct = Bounded(
        cells.index_add(0, at, own[:, 0]).view(T, V),
        roundings(len(targets)) * u * cells.index_add(0, at, own[:, 0].abs()).view(T, V), u,
    )  # fmt: skip
    du = a * p - direct
    if label_smoothing:
        du = du - exact(once(weight) * (label_smoothing / V), u) * 1.0
    counts = torch.zeros(T, dtype=torch.bool).index_fill(0, rows[weight[:, 0] != 0], True)[:, None]
    zero = exact(torch.zeros(()), u)
    entropy = log_sum - _over_classes(p * d)
    return Losses(
        weighted.sum(0, 1)[0, 0],
        where(is_valid, nll[:, 0], zero),
        weighted[:, 0],
        (entropy[rows[is_valid]] * (1 / max(int(is_valid.sum()), 1))).sum(0, 1)[0, 0],
        where(counts, du * slope, zero),
    )


def log_probs(
    logits: Bounded, targets: Tensor, a: Tensor, c: Tensor, *, softcap: float | None = None, temperature: float = 1.0
) -> tuple[Bounded, Bounded, Bounded]:
    """Log-probabilities, entropies, and the gradient of the logits under `a` and `c`; ignored rows are 0."""
    u, zero = logits.u, exact(torch.zeros(()), logits.u)
    z, slope = _capped(logits, softcap)
    z = z * (1 / temperature)
    largest = z.value.argmax(1, keepdim=True)
    m = Bounded(z.value.gather(1, largest), z.error.gather(1, largest), u)
    d = z - m
    log_sum = _over_classes(d.exp()).log()
    log_p = d - log_sum
    p = log_p.exp()
    entropy = log_sum - _over_classes(p * d)
    valid = targets != -100
    y = torch.where(valid, targets, 0)[:, None]
    is_own = torch.zeros(z.value.shape, dtype=torch.bool).scatter(1, y, True)
    up, up_entropy = (exact(torch.where(valid, v, 0)[:, None], u) for v in (a, c))
    dz = where(is_own, up, zero) - up * p - up_entropy * p * (log_p + entropy)
    logp = Bounded(log_p.value.gather(1, y), log_p.error.gather(1, y), u)[:, 0]
    return where(valid, logp, zero), where(valid, entropy[:, 0], zero), dz * slope * (1 / temperature)


# Linear heads


@dataclass(frozen=True)
class Head:
    """A linear head and how its products are rounded.

    Where bfloat16 are multiplied, hidden and weight are rounded to it, and so is the gradient of the logits before the
    two products that it enters. `is_narrow`: so are the logits and every partial product, as on a device.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    product: torch.dtype | None = None
    is_narrow: bool = False

    @property
    def multiplied(self) -> torch.dtype:
        return self.product or torch.promote_types(self.hidden.dtype, self.weight.dtype)

    def _factor(self, x: Tensor | Bounded) -> Bounded:
        """As it enters a product."""
        is_narrow = isinstance(x, Tensor) and x.dtype == torch.bfloat16
        x = x if isinstance(x, Bounded) else exact(x, unit_of(self.multiplied))
        return x.rounded(torch.bfloat16) if self.multiplied == torch.bfloat16 and not is_narrow else x

    def _product(self, a: Bounded, b: Bounded) -> Bounded:
        found = a @ b
        more = oracle.roundoff(torch.bfloat16) * (a.value.abs() @ b.value.abs()) if self.is_narrow else 0.0
        return Bounded(found.value, found.error + more, found.u)

    def logits(self) -> Bounded:
        z = self._product(self._factor(self.hidden), self._factor(self.weight).mT)
        z = z if self.bias is None else z + exact(self.bias, z.u)
        return z.rounded(torch.bfloat16) if self.is_narrow else z

    def gradients(self, dz: Bounded) -> dict[str, Bounded]:
        """Of hidden, weight and bias."""
        factor = self._factor(dz)
        return {
            "hidden": self._product(factor, self._factor(self.weight)),
            "weight": self._product(factor.mT, self._factor(self.hidden)),
            "bias": factor.sum(0)[0],
        }
