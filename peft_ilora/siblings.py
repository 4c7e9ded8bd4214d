"""Layers that read the same input: q, k and v; gate and up.

The first of them to run computes the rank coordinates of all, with one dropout mask. Whether the
input is the same is seen when a layer is called, so the names only say where it pays to look.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

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


def followers(names: Iterable[str]) -> dict[str, list[str]]:
    """The siblings that come after each layer.

    Args:
        names: Of adapted layers in a model.
    """
    known = set(names)
    found: dict[str, list[str]] = {}
    for name in known:
        parent, dot, leaf = name.rpartition(".")
        for group in SIBLINGS:
            if leaf in group:
                later = [f"{parent}{dot}{other}" for other in group[group.index(leaf) + 1 :]]
                found[name] = [other for other in later if other in known]
    return found


@dataclass(frozen=True)
class Offer:
    """Rank coordinates computed ahead, until their layer takes them."""

    x: Tensor
    circumstances: tuple[object, ...]
    hidden: Tensor


Offers = dict[tuple[int, str], Offer]
"""By layer (its id) and adapter."""


def offer(offers: Offers, layer: LoraLayer, adapter: str, x: Tensor, hidden: Tensor) -> None:
    """Leave a layer the coordinates, [..., rank], of an input, [..., in]."""
    offers[id(layer), adapter] = Offer(x, _circumstances(x), hidden)


def take(offers: Offers, layer: LoraLayer, adapter: str, x: Tensor) -> Tensor | None:
    """The layer's coordinates, where they have been computed of this very input."""
    found = offers.pop((id(layer), adapter), None)
    if found is None or found.x is not x or found.circumstances != _circumstances(x):
        return None
    return found.hidden


def _circumstances(x: Tensor) -> tuple[object, ...]:
    """What must not change in between: the input's values, its gradients, and who keeps tensors,
    as a checkpoint that begins after the first layer does.
    """
    keeper = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    return x._version, x.requires_grad, torch.is_grad_enabled(), keeper
