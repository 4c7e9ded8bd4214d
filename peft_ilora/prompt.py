"""Routing by the prompt itself: the mean input embedding of its tokens (`gate_input="prompt"`)."""

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

IGNORED_LABEL = -100


def prompt_embeds(
    model: nn.Module,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    labels: Tensor | None,
) -> Tensor:
    """The mean input embedding of each row's prompt.

    Args:
        model: The base model.
        input_ids: [batch, length], int64; or
        inputs_embeds: [batch, length, width].
        attention_mask: [batch, length]; without it every token counts.
        labels: [batch, length]: the prompt ends before the first token with a label of its own
            (not -100). Ignored for an encoder-decoder, whose labels belong to the decoder.

    Returns:
        [batch, width]

    Raises:
        ValueError: Neither ids nor embeddings, or a row without a prompt token.
    """
    if inputs_embeds is None:
        if input_ids is None:
            raise ValueError(
                "gate_input='prompt' reads input_ids or inputs_embeds, but the call has neither: "
                "pass one of them, or routing_embeds=model.prompt_embeds(...)"
            )
        inputs_embeds = input_embeddings(model)(input_ids)
    assert isinstance(inputs_embeds, Tensor)
    counts = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
    if attention_mask is not None and attention_mask.shape == counts.shape:
        counts = counts & attention_mask.bool()
    decoder_labels = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if labels is not None and not decoder_labels and labels.shape == counts.shape:
        counts = counts & ((labels != IGNORED_LABEL).cumsum(dim=1) == 0)
    _check_prompts(counts)
    # [batch, length, width] * [batch, length, 1] -> [batch, width]
    weights = counts.unsqueeze(-1).to(inputs_embeds.dtype)
    return (inputs_embeds * weights).sum(dim=1) / weights.sum(dim=1)


def _check_prompts(counts: Tensor) -> None:
    message = (
        "has no prompt token: gate_input='prompt' reads the tokens that are attended to and whose "
        "label is -100. Mask the prompt in labels, or pass routing_embeds=model.prompt_embeds(...)"
    )
    present = counts.any(dim=1)
    if counts.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(present.all(), f"a row {message}")  # pyright: ignore[reportPrivateImportUsage]
    elif not present.all():
        raise ValueError(f"row {int((~present).nonzero()[0])} {message}")


def input_embeddings(model: nn.Module) -> nn.Module:
    """The model's input embeddings, past an adapter on them.

    Raises:
        ValueError: The model has none.
    """
    find = getattr(model, "get_input_embeddings", None)
    module = None if find is None else find()
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"gate_input='prompt' reads the model's input embeddings, but {type(model).__name__} "
            "has no get_input_embeddings(): use gate_input='routing' or 'token'"
        )
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def check_prompt_width(model: nn.Module, routing_dim: int) -> None:
    """Check that the gate's input is as wide as the model's input embeddings.

    Raises:
        ValueError: It is not.
    """
    width = getattr(input_embeddings(model), "embedding_dim", routing_dim)
    if width != routing_dim:
        raise ValueError(
            f"routing_dim={routing_dim} but gate_input='prompt' reads {type(model).__name__}'s "
            f"input embeddings of width {width}: ILoRAConfig(routing_dim={width})"
        )


def continues_a_sequence(kwargs: dict[str, Any]) -> bool:
    """Whether a forward's keywords hold a key-value cache with tokens, so not the whole prompt."""
    cache = kwargs.get("past_key_values")
    length = getattr(cache, "get_seq_length", None)
    return cache is not None and (length is None or length() > 0)
