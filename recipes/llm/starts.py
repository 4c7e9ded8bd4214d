"""The start of adapters: for one seed, every arm has the same A in the same layer."""

import hashlib

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from transformers import PreTrainedModel

from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.user_prefix import UserPrefix, start_prefix

DRAWN = (True, "gaussian", "orthogonal")
"""Values of `init_lora_weights` under which PEFT draws A alone; the others compute it from the base
model's weights, or start from an update."""


def start_adapter(model: PeftModel, plan: AdapterPlan, base: PreTrainedModel) -> UserPrefix | None:
    """Give a new adapter the values with which its training starts.

    Args:
        model: The language model with the new adapter.
        plan: The adapter's plan.
        base: The language model without it.

    Returns:
        What makes keys and values of the user's vector, with its first values; None without any.
    """
    draw_again(model, plan.seed)
    if plan.start is not None:
        plan.start(model)
    prefix = None if plan.prefix is None else plan.prefix(base)
    if prefix is not None:
        start_prefix(prefix, plan.seed)
    return prefix


def draw_again(model: PeftModel, seed: int) -> None:
    """Draw A of every layer from a generator of the seed and the layer's name.

    PEFT draws all layers from one stream, together with whatever else an adapter has. So a gate, or
    one more target, would give the other layers another A, and arms would differ by more than what
    is compared. What is not a part of a LoRA layer, such as a gate that all layers share, stays as
    it was drawn.

    Args:
        model: A model with a new adapter.
        seed: Training seed of the adapter.
    """
    (config,) = model.peft_config.values()
    if not isinstance(config, LoraConfig) or config.init_lora_weights not in DRAWN:
        return
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(digest[:7]))
                module.reset_lora_parameters(model.active_adapter, config.init_lora_weights)
