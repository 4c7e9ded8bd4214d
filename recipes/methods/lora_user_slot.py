"""LoRA with the user's representation in an additional prompt slot.

This is the information-matched control of iLoRA: the model gets what iLoRA's gate reads, without a
gate. The slot has the form of E2P (arXiv 2505.17051), here combined with a trained LoRA.
"""

from dataclasses import replace

from recipes.about import About
from recipes.llm.adapter_plan import AdapterPlan
from recipes.methods.lora import LoRA
from recipes.methods.method import Arm
from recipes.run import Run


class LoRAUserSlot(LoRA):
    """The same adapter as `LoRA`; only the prompt differs."""

    name = "lora-user-slot"
    summary = "LoRA with the user's vector in a prompt slot: the information-matched control"
    about = About(
        title="LoRA + user slot",
        meaning="the same LoRA, with the user's representation in one more prompt slot: the "
        "control that gets the same information without a gate",
        order=60,
        ranks_by="likelihood",
        colour="#009E73",
        line=(0, (4, 2)),
    )

    def plan(self, run: Run, arm: Arm, seed: int) -> AdapterPlan:
        """The plan of LoRA, with a user slot in the prompt."""
        return replace(super().plan(run, arm, seed), user_slot=True)
