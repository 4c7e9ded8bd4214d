"""Which of PEFT's layers can be routed, and what computes their update."""

from peft.tuners import lora
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from peft_ilora.layers.convolution import GatedConv
from peft_ilora.layers.embedding import GatedEmbedding
from peft_ilora.layers.update import GatedLinear, GatedUpdate

UPDATES: dict[str, type[GatedUpdate]] = {
    "Linear": GatedLinear,
    "Linear8bitLt": GatedLinear,
    "Linear4bit": GatedLinear,
    "GPTQLoraLinear": GatedLinear,
    "HqqLoraLinear": GatedLinear,
    "TorchaoLoraLinear": GatedLinear,
    "Embedding": GatedEmbedding,
    "Conv1d": GatedConv,
    "Conv2d": GatedConv,
    "Conv3d": GatedConv,
}
"""The update of each of PEFT's LoRA layers that consults `lora_variant`, by class name; any other
layer would silently run ungated."""
MIXING = frozenset({"Linear", "Linear8bitLt", "Linear4bit", "TorchaoLoraLinear"})
"""The layers that consult it for a mixed batch too."""
OWN_LAYERS: dict[type[nn.Module], type[lora.Linear]] = {}
"""Layers that take the place of PEFT's, by the class of the base layer."""


def routed_layer(layer: nn.Module, name: str) -> LoraLayer:
    """Return the LoRA layer that PEFT made, if it lets a variant compute the update.

    Raises:
        TypeError: It would run the experts without their gate.
    """
    if not isinstance(layer, LoraLayer) or type(layer).__name__ not in UPDATES:
        raise TypeError(
            f"target module {name!r} became a {type(layer).__name__}, a back end that would bypass "
            f"the gate; supported are {', '.join(sorted(UPDATES))}"
        )
    return layer


def own_layer(base_layer: nn.Module) -> type[lora.Linear] | None:
    """Return the layer that takes the place of PEFT's; None: PEFT chooses by itself.

    Args:
        base_layer: What is adapted. A weight of another kind than torch's own has a back end of
            PEFT's, which must make the layer.
    """
    weight = getattr(base_layer, "weight", None)
    return OWN_LAYERS.get(type(base_layer)) if type(weight) is nn.Parameter else None
