"""Trainers of TRL that keep K of N responses and average over prompts."""

from mrtkern.integrations.trl.grpo import GRPOTrainer
from mrtkern.integrations.trl.sft import SFTTrainer

__all__ = ["GRPOTrainer", "SFTTrainer"]
