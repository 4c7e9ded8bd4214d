"""The layers below the first adapted one, which no training changes: their frozen prefix.

Its output for a sequence is the same in every step, arm and seed, so it can be computed once and
read in place of token embeddings, while the layers themselves are left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recipes.llm.training import accepted

TOLERANCE = 1e-3
"""Largest difference of logits, as a multiple of their spread; coarser in reduced precision."""
COARSE = 0.3


class Passing(nn.Module):
    """Stands in place of a decoder layer that is left out."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return float [b, t, width] as it came."""
        return hidden_states


def num_layers(model: PreTrainedModel) -> int | None:
    """How many decoder layers a model has, by its configuration."""
    return getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers.

    Raises:
        ValueError: They cannot be told from other lists of modules.
    """
    count = num_layers(model)
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has no one list of {count} decoder layers: choose another "
            "adapt.llm, or leave out what needs them (adapt.frozen_prefix, and the methods "
            "prefixrec and deep-prompt)"
        )
    return found[0]


@contextmanager
def without_layers(layers: nn.ModuleList, left_out: range) -> Iterator[None]:
    """Within the block, some decoder layers pass on what they get; then they are back."""
    kept = {index: layers[index] for index in left_out}
    try:
        for index in kept:
            layers[index] = Passing()
        yield
    finally:
        for index, layer in kept.items():
            layers[index] = layer


@torch.inference_mode()
def prefix_states(
    model: PreTrainedModel, first: int, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """The hidden states that enter decoder layer `first`, [b, t, width].

    Args:
        model: A causal language model in evaluation mode, without an adapter.
        first: Index of the layer.
        input_ids: int64 [b, t], left-padded.
        attention_mask: int64 [b, t].
    """
    layers, seen = decoder_layers(model), []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    with without_layers(layers, range(first, len(layers))):
        handle = layers[first].register_forward_pre_hook(see, with_kwargs=True)
        try:
            _run(model, {"input_ids": input_ids}, attention_mask, logits=1)
        finally:
            handle.remove()
    return seen[0]


@torch.inference_mode()
def check_frozen_prefix(model: PreTrainedModel, first: int, name: str) -> None:
    """Refuse a model that gives other logits when it goes on from the states of its prefix.

    Args:
        model: The frozen model, without an adapter.
        first: Index of the first adapted layer.
        name: As the user wrote it, for messages.

    Raises:
        ValueError: The states cannot be kept.
    """
    layers = decoder_layers(model)
    ids = torch.arange(3, 15, device=model.device).view(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    wanted = _run(model, {"input_ids": ids}, mask)[:, 2:]
    try:
        states = prefix_states(model, first, ids, mask)
        with without_layers(layers, range(first)):
            found = _run(model, {"inputs_embeds": states}, mask)[:, 2:]
    except Exception as error:  # a layer that is left out is missed in many ways
        raise ValueError(
            f"adapt.llm={name!r}: {type(model).__name__} cannot run without its layers below "
            f"{first} ({type(error).__name__}: {error}): set adapt.frozen_prefix false"
        ) from error
    tolerance = TOLERANCE if model.dtype == torch.float32 else COARSE
    if (found - wanted).norm() > tolerance * wanted.std() * wanted.numel() ** 0.5:
        raise ValueError(
            f"adapt.llm={name!r}: {type(model).__name__} gives other scores when its layers from "
            f"{first} on read kept states: set adapt.frozen_prefix false"
        )


def _run(
    model: PreTrainedModel, inputs: dict[str, Tensor], attention_mask: Tensor, logits: int = 0
) -> Tensor:
    """Logits at the last positions (0: at all), float32 [b, n, vocabulary]."""
    places = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    outputs = model(
        attention_mask=attention_mask,
        use_cache=False,
        **inputs,
        **accepted(model, position_ids=places, logits_to_keep=logits),
    )
    return outputs.logits.float()
