"""verl: advantages whose weighted sum is a mean over prompts, however rollouts are dealt; through verl where it is."""

from __future__ import annotations

import doctest
import itertools
from typing import Any

import pytest
import torch

from mrtkern.integrations.verl import register, weighted_advantages
from tests.tools import oracle

UNIT = oracle.sum_error(16, torch.float32)


def weighed(lengths: list[int], losses: list[float], uid: list[str], normalize: str) -> torch.Tensor:
    """Losses of tokens times weights [R, L]."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    A = torch.tensor(losses)[:, None].expand(mask.shape)
    return weighted_advantages(A, mask, uid, normalize)


@pytest.mark.parametrize(
    ("normalize", "value"), [("token", 1.4), ("response", 7 / 3), ("prompt", 2.5), ("prompt_token", 2.0)]
)
def test_sums_are_the_means_that_are_asked_for(normalize: str, value: float) -> None:
    found = weighed([1, 3, 1], [4.0, 0.0, 3.0], ["a", "a", "b"], normalize)
    assert float(found.sum()) == pytest.approx(value, rel=UNIT)


def test_the_token_mean_does_not_depend_on_micro_batches() -> None:
    """Lengths 1 and 3, losses 1 and 3: the mean of the means of micro-batches of one rollout was another number."""
    found = weighed([1, 3], [1.0, 3.0], ["a", "b"], "token")
    assert float(found[0].sum() + found[1].sum()) == pytest.approx(2.5, rel=UNIT)


@pytest.mark.parametrize("normalize", ["token", "response", "prompt", "prompt_token"])
def test_ranks_and_micro_batches_in_any_order_add_up(normalize: str) -> None:
    """Four ranks with a rollout each, unit losses: 1, where a mean over ranks twice gave 0.0625."""
    lengths, uid = [2, 5, 1, 3], ["a", "b", "b", "c"]
    for order in itertools.permutations(range(4)):
        found = weighed([lengths[i] for i in order], [1.0] * 4, [uid[i] for i in order], normalize)
        assert sum(float(row.sum()) for row in found) == pytest.approx(1.0, rel=UNIT)


def test_a_batch_that_is_several_steps_weighs_one_in_each() -> None:
    mask = torch.ones(4, 2, dtype=torch.long)
    found = weighted_advantages(torch.ones(4, 2), mask, ["a", "a", "b", "b"], "prompt", steps=2)
    assert found.sum(1).tolist() == pytest.approx([0.5] * 4, rel=UNIT)


def test_its_example_prints_what_it_says() -> None:
    example = doctest.DocTestParser().get_doctest(weighted_advantages.__doc__ or "", {}, "example", None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_through_verl() -> None:
    """Where it is installed: its registries, its estimator, its clipped loss."""
    core = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
    register("prompt", name="mrtkern_test")
    lengths, uid = torch.tensor([1, 3, 2, 4]), ["a", "a", "b", "b"]
    mask = (torch.arange(4) < lengths[:, None]).long()
    rewards = torch.zeros(4, 4)
    rewards[:, 0] = torch.tensor([1.0, 0.0, 3.0, 0.0])
    A, _ = core.get_adv_estimator_fn("mrtkern_test")(
        token_level_rewards=rewards.clone(), response_mask=mask, index=uid, config={"norm_adv_by_std_in_grpo": False}
    )
    plain, _ = core.get_adv_estimator_fn("grpo")(
        token_level_rewards=rewards.clone(), response_mask=mask, index=uid, norm_adv_by_std_in_grpo=False
    )
    log_prob = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    config: Any = Config()
    whole, _ = core.get_policy_loss_fn("mrtkern_test")(
        old_log_prob=log_prob.detach(), log_prob=log_prob, advantages=A, response_mask=mask, config=config
    )
    parts = [
        core.get_policy_loss_fn("mrtkern_test")(
            old_log_prob=log_prob[r : r + 1].detach(), log_prob=log_prob[r : r + 1], advantages=A[r : r + 1],
            response_mask=mask[r : r + 1], config=config,
        )[0]
        for r in range(4)
    ]  # fmt: skip
    assert float(sum(parts).detach()) == pytest.approx(float(whole.detach()), abs=UNIT)
    whole.backward()  # at ratios of 1 the gradient is - A omega
    torch.testing.assert_close(log_prob.grad, -plain * mask / (4 * lengths[:, None]), rtol=UNIT, atol=UNIT)


class Config(dict):  # type: ignore[type-arg]
    """What verl's clipped loss reads of an actor's configuration."""

    clip_ratio, clip_ratio_low, clip_ratio_high = 0.2, None, None
    global_batch_info: dict[str, Any] = {}  # noqa: RUF012
