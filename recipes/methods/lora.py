"""Plain LoRA with LLaRA's hybrid prompt (arXiv 2312.02445): one adapter for all users."""

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, TaskType

from recipes.about import About
from recipes.methods.adapter import AdapterMethod


class LoRA(AdapterMethod):
    """PEFT's LoRA, with `r` equal to the total rank."""

    name = "lora"
    summary = "plain LoRA with the hybrid prompt (LLaRA): one adapter for all users"
    about = About(
        title="LoRA",
        meaning="one low-rank adapter for all users",
        order=50,
        ranks_by="likelihood",
        colour="#0072B2",
    )

    def peft_config(self, settings: Mapping[str, Any], routing_dim: int) -> LoraConfig:
        """Configuration of LoRA with rank `rank`."""
        return LoraConfig(
            r=settings["rank"],
            lora_alpha=settings["lora_alpha"],
            lora_dropout=settings["lora_dropout"],
            target_modules=settings["target_modules"],
            task_type=TaskType.CAUSAL_LM,
            **settings["options"],
        )
