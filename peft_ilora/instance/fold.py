"""One instance of an adapter: its gate folded into B, which makes it a plain LoRA. Exact."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from peft_ilora.layers.adapters import AdaptedLayer


@torch.no_grad()
def coefficients_of(
    layers: Sequence[AdaptedLayer], routing_embeds: Tensor | None
) -> dict[str, Tensor]:
    """Return the gates' coefficients for one instance, [coefficients], by layer name.

    Args:
        layers: Layers of an adapter.
        routing_embeds: [1, routing_dim] (hard gate: [1]); None: as without a routing.

    Raises:
        ValueError: There is not exactly one instance.
    """
    if routing_embeds is None:
        updates = {layer.name: (layer.update, layer.b) for layer in layers}
        return {name: of.gate.unrouted(of.coordinates, b) for name, (of, b) in updates.items()}
    if routing_embeds.shape[0] != 1:
        raise ValueError(
            f"routing_embeds has {routing_embeds.shape[0]} rows; a plain LoRA holds one instance: "
            "pass one row, for instance routing_embeds[i : i + 1]"
        )
    return {layer.name: layer.update.coefficients_of(routing_embeds)[0] for layer in layers}


@contextmanager
def as_plain_lora(
    layers: Sequence[AdaptedLayer], coefficients: dict[tuple[str, str], Tensor]
) -> Iterator[None]:
    """Let layers be the plain LoRAs of one instance for the block.

    Args:
        layers: Layers of one adapter or several.
        coefficients: [coefficients] of the instance by (adapter, layer name).
    """
    with ExitStack() as folds:
        for layer in layers:
            if layer.update.merged_elsewhere:
                continue
            chosen = coefficients[layer.adapter, layer.name]
            folds.enter_context(layer.update.folded(layer.layer, layer.adapter, chosen))
            del layer.layer.lora_variant[layer.adapter]
            folds.callback(layer.layer.lora_variant.__setitem__, layer.adapter, layer.update)
        yield
