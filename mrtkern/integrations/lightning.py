"""Lightning: a callback that makes an accumulated and distributed step equal one batch, the short last one included.

Lightning divides every loss by accumulate_grad_batches, also where an epoch ends a step early; ranks are averaged. The
callback multiplies each loss by what it was divided by (prompts, responses or tokens of its batch), and before the
optimizer the gradients by accumulate_grad_batches x ranks / what the whole step has of them: nothing has to be known
ahead. Losses that a module returns and logs stay those of its batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from mrtkern.integrations import step, versions

OP = "lightning.StepCounts"


def _refuse(rule: str, got: Any) -> ValueError:
    return ValueError(f"{OP}: {rule}, got {got}")


class StepCounts(Callback):
    """Gradients of the loss over a whole step, where training_step returns the loss of its batch.

        trainer = lightning.Trainer(accumulate_grad_batches=4, callbacks=[StepCounts("prompt")])

    Arguments
    ---------
    normalize : str
        By which training_step normalises, of `mrtkern.response_weights`: with `MultiResponseCrossEntropyLoss`, or a
        model that `mrtkern.integrations.transformers.patch` patched.

    A batch is a mapping as `mrtkern.integrations.step` has it: labels, prompt, response_offsets. A prompt must have all
    its responses in one batch; where batches have prompt_key this is checked before the optimizer's step. Refused:
    manual optimization, and DeepSpeed, whose gradients are not the parameters'.
    """

    def __init__(self, normalize: str) -> None:
        versions.warn_outside("lightning")
        if normalize not in step.DIVISORS:
            raise _refuse(f"normalize must be one of {', '.join(step.DIVISORS)}", repr(normalize))
        self.name = step.DIVISORS[normalize]
        self.rows: list[Tensor] = []  # of the batches since the last step of the optimizer
        self.divisors: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Nothing is counted yet; what cannot be scaled is refused."""
        if not pl_module.automatic_optimization:
            raise _refuse("optimization must be automatic", "automatic_optimization=False")
        if "DeepSpeed" in type(trainer.strategy).__name__:
            raise _refuse("gradients must be the parameters'", type(trainer.strategy).__name__)
        self.rows, self.divisors = [], []
        step.counting.add(id(self))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Somebody else may count."""
        step.counting.discard(id(self))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """As at the end."""
        step.counting.discard(id(self))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """What the batch's loss is going to be divided by."""
        if not isinstance(batch, Mapping) or batch.get("labels") is None:
            raise _refuse("a batch must be a mapping with labels", type(batch).__name__)
        T_r = step.tokens_of(batch["labels"], step.offsets_of(batch))
        rows = step.response_rows(batch, len(self.rows), T_r)
        prompt, T_r, _ = step.whole_step([rows])
        self.rows.append(rows)
        self.divisors.append(int(step.totals(prompt, T_r)[self.name]))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """The numerator of the batch; Lightning's loss is a tensor of its own by now."""
        loss.mul_(self.divisors[-1])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients of numerators become those of the step's loss."""
        ranks = trainer.world_size

        def gather(values: Tensor) -> Tensor:
            found: Tensor = trainer.strategy.all_gather(values.to(pl_module.device))
            return found.flatten(0, 1)

        counted = torch.tensor([sum(self.divisors)], dtype=torch.int64, device="cpu")
        blocks, _ = step.gathered(torch.cat(self.rows), gather if ranks > 1 else None)
        counted = gather(counted).sum() if ranks > 1 else counted
        prompt, T_r, _ = step.whole_step(blocks)
        whole = int(step.totals(prompt, T_r)[self.name])
        self.rows, self.divisors = [], []
        if whole != int(counted):
            rule = "a prompt must have all its responses in one batch"
            raise _refuse(rule, f"{whole} prompts in {int(counted)} parts")
        scale = trainer.accumulate_grad_batches * ranks / max(whole, 1)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
