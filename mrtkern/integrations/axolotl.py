"""A plugin of axolotl that makes the loss of supervised training a mean over prompts.

    plugins:
      - mrtkern.integrations.axolotl.MultiResponsePlugin
    mrtkern_normalize: prompt
    mrtkern_prompt_id: prompt_id

Rows are tokenized already (input_ids, attention_mask, labels) and have a column that names their prompt, because
axolotl's own preparation drops other columns. Trainer, model and collator are those of `mrtkern.integrations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic
from axolotl.integrations.base import BasePlugin

from mrtkern.integrations.data import TokenizedCollator
from mrtkern.integrations.transformers import Trainer, patch
from mrtkern.integrations.versions import warn_outside

OP = "axolotl"


class Arguments(pydantic.BaseModel):
    """The keys of a configuration."""

    mrtkern_normalize: str | None = None
    mrtkern_prompt_id: str = "prompt_id"


class MultiResponsePlugin(BasePlugin):  # type: ignore[misc]
    """Training under `mrtkern_normalize`, a normalisation of `mrtkern.response_weights`; without it nothing changes.

    Every split of an optimizer step over accumulated batches and ranks is one batch, and eval_loss is that of the
    whole set, as `mrtkern.integrations.transformers.Trainer` has them.

    Raises
    ------
    ValueError
        With mrtkern_normalize: for sample_packing, which knows no ids, and what `Trainer` and `patch` refuse.
    """

    def get_input_args(self) -> str:
        """The model of the keys, by its name."""
        return f"{__name__}.Arguments"

    def register(self, cfg: dict[str, Any]) -> None:
        """Refuses what cannot be weighed, before anything is loaded."""
        warn_outside("axolotl")
        for name in ("sample_packing", "eval_sample_packing", "rl"):
            if cfg.get("mrtkern_normalize") and cfg.get(name):
                raise ValueError(f"{OP}: {name} must be off with mrtkern_normalize, got {cfg[name]}")

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Patches the loss of the model, adapters and all."""
        if cfg.mrtkern_normalize:
            patch(model, cfg.mrtkern_normalize)

    def get_trainer_cls(self, cfg: Any) -> type | None:
        """axolotl's trainer, which counts the prompts of a whole step before its first forward pass."""
        if not cfg.mrtkern_normalize:
            return None
        from axolotl.core.trainers.base import AxolotlTrainer

        prompt_id = self._prompt_id(cfg)

        class MultiResponseTrainer(Trainer, AxolotlTrainer):  # type: ignore[misc]
            """Both."""

            _signature_columns: Any

            def _set_signature_columns_if_needed(self) -> None:
                super()._set_signature_columns_if_needed()
                if prompt_id not in self._signature_columns:
                    self._signature_columns.append(prompt_id)

        return MultiResponseTrainer

    def get_collator_cls_and_kwargs(
        self, cfg: Any, is_eval: bool = False
    ) -> tuple[Callable[..., TokenizedCollator], dict[str, Any]] | None:
        """What axolotl calls with its tokenizer, its own arguments and these."""
        return (_collator, {"prompt_id": self._prompt_id(cfg)}) if cfg.mrtkern_normalize else None

    @staticmethod
    def _prompt_id(cfg: Any) -> str:
        return cfg.mrtkern_prompt_id or "prompt_id"


def _collator(tokenizer: Any, *, prompt_id: str, pad_to_multiple_of: int | None = None, **_: Any) -> TokenizedCollator:
    return TokenizedCollator(
        prompt_id, pad_token_id=tokenizer.pad_token_id or 0, pad_to_multiple_of=pad_to_multiple_of or 1
    )
