"""Biases on B, which instances of some gate forms have: what carries them, and what cannot."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peft_ilora.layers.adapters import AdaptedLayer
from peft_ilora.layers.computed import is_computed

Shifts = dict[tuple[str, str], Tensor]
"""Biases on B, [out], unscaled, by (adapter, layer name); without the layers that have none."""
_WITHOUT_BIAS = {
    "Embedding": "an embedding",
    "HqqLoraLinear": "an HQQ weight",
    "TorchaoLoraLinear": "a torchao weight",
}
"""PEFT's LoRA layers that refuse `lora_bias=True`, by class name."""


@torch.no_grad()
def shifts_of(
    layers: Sequence[AdaptedLayer], coefficients: dict[tuple[str, str], Tensor]
) -> Shifts:
    """Return the biases on B of one instance.

    Args:
        layers: Layers of one adapter or several.
        coefficients: [coefficients] of the instance by (adapter, layer name).
    """
    keys = [(layer, (layer.adapter, layer.name)) for layer in layers]
    found = {key: layer.bias(coefficients[key]) for layer, key in keys}
    return {key: shift for key, shift in found.items() if shift is not None}


def merged_shift(layer: AdaptedLayer, shifts: Shifts) -> Tensor | None:
    """Return what merging a layer adds to its base layer's bias, [out], in float32 at least."""
    shift = shifts.get((layer.adapter, layer.name))
    if shift is None:
        return None
    scaling = layer.layer.scaling[layer.adapter]
    return scaling * shift.to(torch.promote_types(shift.dtype, torch.float32))


def check_exportable(layers: Sequence[AdaptedLayer], shifts: Shifts) -> None:
    """Refuse to export a bias for a layer for which PEFT takes none.

    Raises:
        ValueError: There is such a layer.
    """
    for layer in layers:
        what = _WITHOUT_BIAS.get(type(layer.layer).__name__)
        if what is not None and (layer.adapter, layer.name) in shifts:
            raise ValueError(
                f"an instance of adapter {layer.adapter!r} is a LoRA with a bias on B, which PEFT "
                f"does not allow at {layer.name}, {what}: use gate_form='scale', whose instances "
                "are LoRAs without a bias, or take the layer out of target_modules"
            )


def check_biases(
    model: nn.Module, layers: Sequence[AdaptedLayer], shifts: Shifts, trained: Sequence[str] = ()
) -> None:
    """Refuse to merge a bias into a base layer that cannot take it.

    Args:
        model: The base model.
        layers: Layers that will be merged.
        shifts: Their biases on B.
        trained: Adapters that train base biases and would be saved with merged ones.

    Raises:
        ValueError: There is such a layer; nothing has been changed.
    """
    held = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    for layer in layers:
        if (layer.adapter, layer.name) not in shifts:
            continue
        base = layer.layer.get_base_layer()
        bias = getattr(base, "bias", None)
        if bias is None:
            problem = "has no bias"
        elif is_computed(base, "bias"):
            problem = "has a computed bias (pruned or parametrised)"
        elif held[id(bias)] > 1:
            problem = "shares its bias with another module"
        elif layer.adapter in trained:
            problem = "has a bias that the adapter trains and saves (ILoRAConfig.bias)"
        else:
            continue
        raise ValueError(
            f"{layer.name} {problem}, so the bias that an instance of adapter {layer.adapter!r} "
            "has on B cannot be merged into it: use peft_ilora.export_lora(model, z, folder), or "
            "gate_form='scale', which merges without a bias"
        )
