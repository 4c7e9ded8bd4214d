"""LoRA with the user's representation in an additional prompt slot.

This is the information-matched control of iLoRA: the model gets what iLoRA's gate reads, without a
gate. The slot has the form of E2P (arXiv 2505.17051), here combined with a trained LoRA.
"""

from recipes.about import About
from recipes.methods.lora import LoRA


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
    user_slot = True
