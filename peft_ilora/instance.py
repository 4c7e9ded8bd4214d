"""One instance of an adapter: its gate folded into B, which makes it a plain LoRA. Exact."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from peft_ilora.update import GatedUpdate, up_projection


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer that an adapter has been added to."""

    name: str
    """In the base model."""
    adapter: str
    layer: LoraLayer
    update: GatedUpdate

    @property
    def b(self) -> Tensor:
        """[out, sum of ranks, ...]"""
        return up_projection(self.layer, self.adapter)

    def folded_b(self, weights: Tensor) -> Tensor:
        """B with expert weights, [num_experts], folded into its columns."""
        return self.update.coordinates.fold(self.b, weights)

    def delta_weight(self, weights: Tensor) -> Tensor:
        """What merging with expert weights, [num_experts], adds to the base weight."""
        return self.update.delta_weight(self.layer, self.adapter, weights)


@torch.no_grad()
def expert_weights(layers: Sequence[AdaptedLayer], routing: Tensor | None) -> dict[str, Tensor]:
    """Expert weights of one instance, [num_experts], by layer name.

    Args:
        layers: An adapter's.
        routing: [1, routing_dim] (hard gate: [1]); None: all experts alike.

    Raises:
        ValueError: Not exactly one instance.
    """
    if routing is None:
        counts = {layer.name: layer.update.coordinates.num_experts for layer in layers}
        return {name: torch.full((count,), 1 / count) for name, count in counts.items()}
    if routing.shape[0] != 1:
        raise ValueError(
            f"routing_embeds has {routing.shape[0]} rows; a plain LoRA holds one instance: "
            "pass one row, for instance routing_embeds[i : i + 1]"
        )
    return {layer.name: layer.update.gate(routing)[0] for layer in layers}


@contextmanager
def as_plain_lora(
    layers: Sequence[AdaptedLayer], weights: dict[tuple[str, str], Tensor]
) -> Iterator[None]:
    """Let layers be plain LoRAs with these expert weights for the block.

    Args:
        layers: Of one adapter or several.
        weights: [num_experts] by (adapter, layer name).
    """
    with ExitStack() as folds:
        for layer in layers:
            chosen = weights[layer.adapter, layer.name]
            folds.enter_context(layer.update.folded(layer.layer, layer.adapter, chosen))
            del layer.layer.lora_variant[layer.adapter]
            folds.callback(layer.layer.lora_variant.__setitem__, layer.adapter, layer.update)
        yield
