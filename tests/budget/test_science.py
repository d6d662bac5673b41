"""Golden numbers of the paper and of the derivations behind this library: variance, its estimation, misalignment."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

import mrtkern.ops.cross_entropy
from mrtkern.budget import optimal_k, variance_components
from mrtkern.loss import NORMALIZATIONS, response_weights
from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.select import select_responses
from tests.tools import oracle

FAR = 4.5  # standard errors: a fixed seed stays within them, a wrong formula does not


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


# why several responses


def test_the_best_k_of_the_paper() -> None:
    c = optimal_k(0.187, 1.329, prompt_cost=4, response_cost=1)
    assert round(c.continuous, 2) == 5.33
    assert c.k == 5
    assert round(c.variance(1) / c.variance(c.continuous), 2) == 1.86
    assert round(c.ratio, 2) == 1.86


def test_the_least_variance_is_the_square_of_a_sum_of_roots() -> None:
    c = optimal_k(0.187, 1.329, prompt_cost=4, response_cost=1, budget=1000)
    least = (math.sqrt(4 * 0.187) + math.sqrt(1.329)) ** 2 / 1000
    oracle.assert_summed(torch.tensor(c.variance(c.continuous)).double(), torch.tensor(least).double(), 16, least)


# estimating it

PROMPTS, RESPONSES, DRAWN = 400, 16, 40  # of the pool, per prompt, prompts of a draw
REPEATS = 3000


def pool(between: float, within: float) -> torch.Tensor:
    """y [PROMPTS, RESPONSES] whose prompt means and rows have exactly these sample variances (rows: on average)."""
    generator = torch.Generator().manual_seed(8)
    means = torch.randn(PROMPTS, 1, generator=generator, dtype=torch.float64)
    means *= math.sqrt(between) / means.std()
    noise = torch.randn(PROMPTS, RESPONSES, generator=generator, dtype=torch.float64)
    noise -= noise.mean(1, keepdim=True)
    return means + noise * (within / noise.var(1).mean()).sqrt()


@pytest.mark.parametrize(("K", "printed"), [(1, 0.5013), (4, 0.1711), (12, 0.0977), (16, 0.0885)])
def test_variance_of_a_draw_without_replacement(K: int, printed: float) -> None:
    y = pool(between=3.9333, within=17.6128)
    v = variance_components(y.flatten(), torch.arange(0, y.numel() + 1, RESPONSES))
    means = v.between_raw + v.within / RESPONSES  # sample variance of the prompts' means
    formula = (1 - DRAWN / PROMPTS) * means / DRAWN + (1 - K / RESPONSES) * v.within / (DRAWN * K)
    assert round(formula, 4) == printed

    generator = torch.Generator().manual_seed(9 + K)
    prompts = torch.rand(REPEATS, PROMPTS, generator=generator).topk(DRAWN, dim=1).indices
    responses = torch.rand(REPEATS, DRAWN, RESPONSES, generator=generator).topk(K, dim=2).indices
    estimates = y[prompts].gather(2, responses).mean((1, 2))
    simulated = float((estimates - y.mean()).square().mean())
    assert abs(simulated / formula - 1) < FAR * math.sqrt(2 / REPEATS)  # relative standard error of a variance


def test_analysis_of_variance_is_unbiased_for_unequal_groups() -> None:
    generator = torch.Generator().manual_seed(10)
    sizes = torch.arange(60) % 9 + 1
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    between, within, repeats = 0.187, 1.329, 500
    found = torch.empty(repeats, 2, dtype=torch.float64)
    for repeat in range(repeats):
        prompt = torch.randn(60, generator=generator).repeat_interleave(sizes) * math.sqrt(between)
        v = variance_components(prompt + torch.randn(len(prompt), generator=generator) * math.sqrt(within), offsets)
        found[repeat] = torch.tensor([v.between_raw, v.within])
    errors = (found.mean(0) - torch.tensor([between, within])).abs() / (found.std(0) / math.sqrt(repeats))
    assert bool((errors < FAR).all())


# what lengths do to a loss

SHORT, LONG = 10, 100  # tokens of two responses, each drawn half of the time


def learnt(normalize: str) -> float:
    """Probability of the short response after training: its first token is a choice, all others are certain."""
    choice = torch.zeros(2, dtype=torch.float64)
    first = torch.tensor([0, SHORT])
    offsets = torch.tensor([0, SHORT, SHORT + LONG])
    targets = torch.zeros(SHORT + LONG, dtype=torch.int64).index_fill_(0, first[1:], 1)
    w = response_weights(targets, normalize, offsets=offsets, prompt=torch.zeros(2, dtype=torch.int64))
    for _ in range(500):
        logits = torch.tensor([0.0, -1e4], dtype=torch.float64).repeat(SHORT + LONG, 1)
        logits[first] = choice
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(logits, targets, token_weight=w), logits)
        choice -= gradient.sum(0) * 4 / w[first].sum()  # the curvature is at most a quarter of the weight
    return float(choice.softmax(0)[0])


def test_lengths_tilt_what_is_learnt_as_documented() -> None:
    definition = mrtkern.ops.cross_entropy.__doc__
    assert definition is not None
    tilted, even = re.findall(r"learnt as (0\.\d{3}) and 0\.\d{3}", definition)
    found = {normalize: f"{learnt(normalize):.3f}" for normalize in NORMALIZATIONS}
    assert found == dict.fromkeys(("response", "prompt"), tilted) | dict.fromkeys(
        ("token", "prompt_sum", "prompt_token"), even
    )


# the failure to reproduce: keeping the best rewards can point away from the true gradient


def kept(method: str, rows: torch.Tensor, reward: torch.Tensor, N: int, K: int) -> torch.Tensor:
    """Row numbers [B, K] of the responses kept of every prompt of N."""
    offsets = torch.arange(0, len(rows) + 1, N)
    return select_responses(rows, offsets, K, method=method, reward=reward).ids.view(-1, K)


@pytest.mark.parametrize(
    ("distance", "by_reward", "at_random"),
    [(0.0, -1.00, 0.53), (0.25, -0.78, 0.53), (0.5, -0.39, 0.58), (1.0, 0.55, 0.73)],
)
def test_reward_misleads_a_gaussian_model_and_random_does_not(
    distance: float, by_reward: float, at_random: float
) -> None:
    B, N, K, noise = 250, 64, 4, 0.1
    generator = torch.Generator().manual_seed(11)
    mode = torch.randint(-1, 2, (B * N,), generator=generator)
    y = 1.5 * mode + noise * torch.randn(B * N, generator=generator)  # the model's mean is `distance` above the data's
    gradient = torch.stack([distance - y, 1 - (y - distance).square()], dim=1)  # of (mean, log sigma) at sigma = 1
    true = torch.tensor([distance, 1 - (distance**2 + 1.5 + noise**2)])
    rows = torch.stack([y, torch.ones_like(y)], dim=1)
    cosines = {
        method: cosine(gradient[kept(method, rows, -y.square(), N, K)].mean(1), true) for method in ("reward", "random")
    }
    assert round(float(cosines["reward"].mean()), 2) == by_reward
    spread = float(cosines["random"].std()) / math.sqrt(B)
    assert abs(float(cosines["random"].mean()) - at_random) < FAR * spread


@pytest.mark.parametrize(("K", "printed"), [(1, -1.0), (4, -1.0), (16, -0.32), (32, 1.0)])
def test_reward_misleads_a_softmax_model_until_it_keeps_nearly_all(K: int, printed: float) -> None:
    N = 32
    model, data = torch.tensor([0.6, 0.2, 0.2]).double(), torch.full((3,), 1 / 3).double()
    # Every pool of N responses over three modes, with its probability; the model's own likelihood is the reward.
    pools = [(a, b, N - a - b) for a, b in itertools.product(range(N + 1), repeat=2) if a + b <= N]
    weight = torch.tensor([math.comb(N, a) * math.comb(N - a, b) / 3.0**N for a, b, _ in pools]).double()
    mode = torch.cat([torch.arange(3).repeat_interleave(torch.tensor(counts)) for counts in pools])
    one_hot = torch.eye(3, dtype=torch.float64)[mode]
    frequencies = one_hot[kept("reward", one_hot.float(), model[mode].float(), N, K)].mean(1)
    gradient = model - (weight[:, None] * frequencies).sum(0)
    assert round(float(cosine(gradient, model - data)), 2) == printed
