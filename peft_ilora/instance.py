"""One instance of an adapter: its gate folded into B, which makes it a plain LoRA. Exact."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from peft_ilora.layer import GatedUpdate


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer that an adapter has been added to."""

    name: str
    """In the base model."""
    adapter: str
    layer: LoraLayer
    update: GatedUpdate

    @property
    def lora_b(self) -> nn.Linear:
        """Linear(num_experts * r, out)."""
        module = self.layer.lora_B[self.adapter]
        assert isinstance(module, nn.Linear)
        return module


def folded_b(weight: Tensor, expert_weights: Tensor) -> Tensor:
    """B with an instance's expert weights folded into its columns.

    Args:
        weight: [out, num_experts * rank]
        expert_weights: [num_experts]
    """
    rank = weight.shape[1] // expert_weights.shape[0]
    columns = expert_weights.to(weight.device, weight.dtype).repeat_interleave(rank)
    return weight * columns


@torch.no_grad()
def instance_b(layers: Sequence[AdaptedLayer], routing_embeds: Tensor) -> dict[str, Tensor]:
    """B of each layer for one instance, by layer name.

    Args:
        layers: An adapter's.
        routing_embeds: [1, routing_dim]

    Raises:
        ValueError: Not exactly one row.
    """
    if routing_embeds.shape[0] != 1:
        raise ValueError(
            f"routing_embeds has {routing_embeds.shape[0]} rows; a plain LoRA holds one instance: "
            "pass [1, routing_dim], for instance routing_embeds[i : i + 1]"
        )
    return {
        layer.name: folded_b(layer.lora_b.weight, layer.update.gate(routing_embeds)[0])
        for layer in layers
    }


@contextmanager
def as_plain_lora(
    layers: Sequence[AdaptedLayer], weights: dict[tuple[str, str], Tensor]
) -> Iterator[None]:
    """Let layers be plain LoRAs with these B for the block; undone if the block fails.

    Args:
        layers: Of one adapter or several.
        weights: B by (adapter, layer name), from `instance_b`.
    """
    before = [layer.lora_b.weight for layer in layers]
    for layer in layers:
        del layer.layer.lora_variant[layer.adapter]
        folded = weights[layer.adapter, layer.name]
        layer.lora_b.weight = nn.Parameter(folded, requires_grad=False)
    try:
        yield
    except BaseException:
        for layer, weight in zip(layers, before, strict=True):
            layer.layer.lora_variant[layer.adapter] = layer.update
            layer.lora_b.weight = weight
        raise
