"""verl with a policy loss that is a mean over prompts: two lines of a configuration and one call before training.

    import mrtkern.integrations.verl
    mrtkern.integrations.verl.register("prompt", steps=4)      # in a module of VERL_USE_EXTERNAL_MODULES

    algorithm.adv_estimator=mrtkern  actor_rollout_ref.actor.policy_loss.loss_mode=mrtkern

verl knows the prompt of a rollout (its uid) where it estimates advantages, for the whole batch at once; its policy
losses see micro-batches. So weights are multiplied into the advantages, in which the clipped losses are homogeneous,
and the loss sums over tokens: however rollouts are dealt to ranks and micro-batches, the sum is the same. Terms of the
entropy and of KL keep loss_agg_mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import mrtkern as mk
from mrtkern.integrations.step import IGNORE
from mrtkern.integrations.versions import warn_outside

NAME = "mrtkern"


def weighted_advantages(
    advantages: Tensor, response_mask: Tensor, uid: Sequence[Any], normalize: str, *, steps: int = 1
) -> Tensor:
    """Advantages [R, L] times the weights of a normalisation, whose losses are then to be summed over tokens.

    Arguments
    ---------
    advantages, response_mask : [R, L]
        Of all rollouts of a batch.
    uid : sequence of R texts or numbers
        What names the prompt of each; equal prompts with other uids are other prompts.
    normalize : str
        Of `mrtkern.response_weights`.
    steps : int
        Optimizer steps that the batch is dealt to: train_batch_size / ppo_mini_batch_size.

    Returns
    -------
    advantages : [R, L], of the type of `advantages`

    Raises
    ------
    ValueError
        As `mrtkern.response_weights`.

    Memory
    ------
    About 50 bytes per token.

    Determinism
    -----------
    The same for every order of the rollouts.

    Example
    -------
    >>> import torch
    >>> from mrtkern.integrations.verl import weighted_advantages
    >>> A, mask = torch.ones(3, 2), torch.tensor([[1, 1], [1, 0], [1, 0]])
    >>> weighted_advantages(A, mask, ["p", "p", "q"], "prompt").tolist()
    [[0.125, 0.125], [0.25, 0.0], [0.5, 0.0]]
    """
    order, offsets, _ = mk.group([str(name) for name in uid])
    number = torch.repeat_interleave(offsets.diff())
    prompt = torch.empty_like(number).index_copy_(0, order, number).to(response_mask.device)
    targets = torch.where(response_mask.bool(), 0, IGNORE)
    weights = mk.response_weights(targets, normalize, prompt=prompt)
    return (advantages * weights * steps).to(advantages.dtype)


def register(normalize: str = "prompt", *, steps: int = 1, name: str = NAME) -> None:
    """Makes `name` an advantage estimator of verl, GRPO's times the weights, and a policy loss, "vanilla" summed.

    normalize, steps: of `weighted_advantages`. Needs verl 0.9 ("token-sum" came with it).
    Raises ValueError for a normalisation that there is not, and where verl has another estimator by that name.
    """
    from verl.trainer.ppo import core_algos

    warn_outside("verl")
    one = torch.ones((1, 1), dtype=torch.int64, device="cpu")
    weighted_advantages(one.float(), one, [0], normalize)

    def estimator(
        token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
        advantages, returns = core_algos.get_adv_estimator_fn("grpo")(
            token_level_rewards=token_level_rewards, response_mask=response_mask, index=index,
            norm_adv_by_std_in_grpo=by_std,
        )  # fmt: skip
        return weighted_advantages(advantages, response_mask, index, normalize, steps=steps), returns

    def loss(
        old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor,
        loss_agg_mode: str = "token-sum", config: Any = None, rollout_is_weights: Tensor | None = None,
    ) -> Any:  # fmt: skip
        return core_algos.get_policy_loss_fn("vanilla")(
            old_log_prob=old_log_prob, log_prob=log_prob, advantages=advantages, response_mask=response_mask,
            loss_agg_mode="token-sum", config=config, rollout_is_weights=rollout_is_weights,
        )  # fmt: skip

    core_algos.register_adv_est(name)(estimator)
    core_algos.register_policy_loss(name)(loss)
