"""Merging into all layers or into none: what a merge that fails has done is taken back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from peft_ilora.layers.adapters import AdaptedLayer
from peft_ilora.rollback import Snapshot


@contextmanager
def undone_on_failure(
    tuner: nn.Module,
    layers: Sequence[AdaptedLayer],
    coefficients: dict[tuple[str, str], Tensor],
) -> Iterator[None]:
    """Make a model what it was if the block, which merges layers of it, fails.

    A weight that was merged in place is what it was up to rounding, everything else to the bit.

    Args:
        tuner: The adapted model.
        layers: Layers that the block merges.
        coefficients: [coefficients] of the instance by (adapter, layer name).
    """
    before = Snapshot(tuner)
    bases = {layer.name: layer.layer.get_base_layer() for layer in layers}
    weights = {name: base._parameters.get("weight") for name, base in bases.items()}
    held = [base._parameters.get("bias") for base in bases.values()]
    biases = [(bias, bias.detach().clone()) for bias in held if bias is not None]
    try:
        yield
    except BaseException:
        in_place = [layer for layer in layers if _is_merged(layer, weights[layer.name])]
        before.restore()
        for layer in in_place:
            weight = weights[layer.name]
            assert weight is not None
            delta = layer.delta_weight(coefficients[layer.adapter, layer.name])
            weight.data -= delta.to(weight.device, weight.dtype)
        for bias, value in biases:
            bias.data.copy_(value)
        raise


def _is_merged(layer: AdaptedLayer, weight: nn.Parameter | None) -> bool:
    """Whether a layer has been merged into a weight, and not into another one in its place."""
    now = layer.layer.get_base_layer()._parameters.get("weight")
    merged = layer.adapter in layer.layer.merged_adapters
    return merged and not layer.update.merged_elsewhere and weight is not None and now is weight
