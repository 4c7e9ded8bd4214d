"""Routing by the prompt itself: the mean input embedding of its tokens (`gate_input="prompt"`)."""

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.routing.binding import Owner, Routing

IGNORED_LABEL = -100


def prompt_routing(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    owner: Owner,
    configs: dict[str, ILoRAConfig],
) -> Routing:
    """Return the routing that a call's own prompt gives.

    Args:
        model: The base model.
        args: Positional arguments of the call.
        kwargs: Its arguments by name.
        owner: Which call it is.
        configs: Configurations of the adapters that read it.

    Raises:
        ValueError: The call does not hold the whole prompt.
    """
    if continues_a_sequence(kwargs):
        raise ValueError(
            "gate_input='prompt' needs the whole prompt, but this forward continues a sequence "
            "(past_key_values): run inside "
            "`with model.routing(model.prompt_embeds(input_ids, attention_mask)):`"
        )
    tasks = {config.task_type for config in configs.values()}
    labels = kwargs.get("labels") if tasks <= {None, "CAUSAL_LM"} else None  # else: of inputs
    if owner == "forward" and model.training and labels is None and "CAUSAL_LM" in tasks:
        raise ValueError(
            "gate_input='prompt' cannot tell the prompt from the answer in a training forward "
            "without labels (label_smoothing_factor and compute_loss_func take them off): "
            "pass labels, or routing_embeds=model.prompt_embeds(input_ids, mask, labels)"
        )
    ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    embeds = prompt_embeds(
        model, ids, kwargs.get("inputs_embeds"), kwargs.get("attention_mask"), labels
    )
    return Routing(embeds, owner)


def prompt_embeds(
    model: nn.Module,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    labels: Tensor | None,
) -> Tensor:
    """Return the mean input embedding of each row's prompt.

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
    """Return the model's input embeddings, past an adapter on them.

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


def reads_prompt(configs: dict[str, ILoRAConfig]) -> bool:
    """Whether all of these adapters, and one at least, are routed by the prompt itself."""
    return bool(configs) and all(config.gate_input == "prompt" for config in configs.values())


def continues_a_sequence(kwargs: dict[str, Any]) -> bool:
    """Whether a forward has a cache with tokens, so that it lacks a part of the prompt."""
    cache = kwargs.get("past_key_values")
    length = getattr(cache, "get_seq_length", None)
    return cache is not None and (length is None or length() > 0)
