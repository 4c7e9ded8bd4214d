"""Base weights that several layers share, as tied embeddings do: what merging does about them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peft_ilora.layers.adapters import AdaptedLayer
from peft_ilora.layers.computed import is_computed
from peft_ilora.layers.tying import is_tied


def prepare_base_weights(
    model: nn.Module,
    layers: Sequence[AdaptedLayer],
    coefficients: dict[tuple[str, str], Tensor],
    may_untie: bool,
) -> None:
    """See to it that merging into each layer's base weight changes that layer alone.

    A layer whose adapter is that of the input embedding, transposed, is merged with it, once.
    Otherwise tied embeddings get a weight each.

    Args:
        model: The base model.
        layers: Layers that will be merged.
        coefficients: [coefficients] of the instance by (adapter, layer name).
        may_untie: Whether tied embeddings may stop being tied.

    Raises:
        ValueError: A weight cannot be merged into; nothing has been changed.
    """
    for layer in layers:
        base = layer.layer.get_base_layer()
        if getattr(base, "groups", 1) != 1:
            raise ValueError(
                f"{layer.name} is a convolution of groups={base.groups}, which PEFT cannot merge: "
                "use peft_ilora.export_lora(model, z, folder)"
            )
        if type(base).__name__ == "HQQLinear" and base.bias is not None:
            raise ValueError(
                f"{layer.name} has an HQQ weight and a bias, which PEFT's merge would drop: use "
                "peft_ilora.export_lora(model, z, folder)"
            )
        if is_computed(base):
            raise ValueError(
                f"the base weight of {layer.name} is computed (pruned, normed or parametrised), so "
                "a merged adapter would be lost: make it plain by prune.remove, remove_weight_norm "
                "or remove_parametrizations of torch.nn.utils, or use "
                "peft_ilora.export_lora(model, z, folder)"
            )
    followers = {layer.name for layer in layers if _follows(model, layer, coefficients)}
    alone = [layer for layer in layers if layer.name not in followers]
    bases = {layer.name: layer.layer.get_base_layer() for layer in layers}
    following = [bases[name] for name in followers]
    separate: dict[str, nn.Module] = {}
    for layer in alone:
        base = bases[layer.name]
        given = [*separate.values(), *following, base]
        others = [module for module in _holders(model, base) if module not in given]
        if others:
            _check_may_untie(model, layer, [base, *others], may_untie)
            separate[layer.name] = base
    for layer in layers:
        layer.update.merged_elsewhere = layer.name in followers
    for base in separate.values():
        weight = base.weight
        assert isinstance(weight, nn.Parameter)
        base.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)


def _follows(
    model: nn.Module, layer: AdaptedLayer, coefficients: dict[tuple[str, str], Tensor]
) -> bool:
    """Whether merging the input embedding merges a layer too."""
    if not is_tied(layer.layer, layer.adapter):
        return False
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if layer.layer.get_base_layer().weight is not embedding.get_base_layer().weight:
        return False
    name = next(name for name, module in model.named_modules() if module is embedding)
    given = coefficients.get((layer.adapter, name))
    return given is not None and torch.equal(given, coefficients[layer.adapter, layer.name])


def _holders(model: nn.Module, base: nn.Module) -> list[nn.Module]:
    """Return the modules that have a layer's weight."""
    weight = base._parameters.get("weight")
    if weight is None:
        return [base]
    return [m for m in model.modules() if any(p is weight for p in m._parameters.values())]


def _check_may_untie(
    model: nn.Module, layer: AdaptedLayer, holders: Sequence[nn.Module], may_untie: bool
) -> None:
    config = getattr(model, "config", None)
    ends: list[object] = []
    if getattr(config, "tie_word_embeddings", False):
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):  # type: ignore[operator]
            ends.append(end.get_base_layer() if hasattr(end, "get_base_layer") else end)
    if not may_untie or any(module not in ends for module in holders):
        untying = "" if may_untie else "merge_and_unload(routing_embeds=z), "
        raise ValueError(
            f"{layer.name} shares its base weight with another module, which a merge would change "
            f"too: use {untying}peft_ilora.export_lora(model, z, folder), or a base model loaded "
            "with tie_word_embeddings=False"
        )
