"""Layers that read the same input: q, k and v; gate and up.

The first of them to run computes the rank coordinates of all, with one dropout mask, and leaves
the others theirs in the memory of the forward. Whether the input is the same is seen when a layer
is called, so the names only say where it pays to look.
"""

from collections.abc import Collection
from dataclasses import dataclass

from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from peft_ilora.routing.binding import Memory, RoutingState
from peft_ilora.routing.keeping import keeping

SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
"""Names, within one module, of layers that models call with the same input, in this order."""


def followers(name: str, names: Collection[str]) -> list[str]:
    """Return the siblings that come after a layer.

    Args:
        name: The layer's name.
        names: Names of the adapted layers in the model.
    """
    parent, dot, leaf = name.rpartition(".")
    group = next((group for group in SIBLINGS if leaf in group), (leaf,))
    later = [f"{parent}{dot}{other}" for other in group[group.index(leaf) + 1 :]]
    return [other for other in later if other in names]


@dataclass(frozen=True)
class Offer:
    """Rank coordinates that were computed ahead, until their layer takes them."""

    x: Tensor
    as_it_is: tuple[object, ...]
    """The input's version, and who kept tensors: both must be the same when it is taken."""
    hidden: Tensor


def offer(memory: Memory, layer: LoraLayer, adapter: str, x: Tensor, hidden: Tensor) -> None:
    """Leave a layer its rank coordinates, [..., rank], of an input, [..., in]."""
    memory["offer", layer, adapter] = Offer(x, (x._version, *keeping()), hidden)


def take(memory: Memory, layer: LoraLayer, adapter: str, x: Tensor) -> Tensor | None:
    """Return a layer's rank coordinates, where they have been computed from this very input."""
    found = memory.pop(("offer", layer, adapter), None)
    if found is None or found.x is not x or found.as_it_is != (x._version, *keeping()):
        return None
    return found.hidden


def shared_memory(state: RoutingState) -> Memory | None:
    """Return where layers may leave something for others; None: nothing is shared.

    Nothing is shared in mixed batches, whose rows PEFT copies; where no frame with a memory (of a
    forward, of `generate` or of a checkpointed block) would end an offer; nor inside a block that
    the model or its user checkpoints by itself, because it is recomputed without the frame, and the
    masks of both runs must be the same.
    """
    frame = state.stack[-1]
    if frame.adapter_names is not None or frame.memory is None or frame.opened_by != keeping():
        return None
    return frame.memory
