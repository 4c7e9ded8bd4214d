"""What can be known of a language model and an adapter before anything is trained.

Every function refuses, with the field to change, what would otherwise be found out after hours.
"""

import copy
import warnings
from typing import Any

import numpy as np
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recipes.llm.language_model import peft_wrapping
from recipes.llm.loading import Outline, embedding_rows
from recipes.prompting.ragged import Ragged
from recipes.prompting.special_tokens import find_id

NAMING = ("target_modules", "modules_to_save", "exclude_modules", "rank_pattern", "alpha_pattern")
"""Fields of PEFT's configurations that name modules."""
SECTION = {"target_modules": "adapt.target_modules"}
"""What a user knows a field as."""


def check_tokens(outline: Outline, prompts: Ragged, answers: Ragged) -> None:
    """Refuse token ids that the model has no embedding for (ValueError)."""
    rows = embedding_rows(outline.model)
    used = max(int(ids.values.max()) for ids in (prompts, answers) if len(ids.values))
    named = {name: find_id(outline.tokenizer, name) for name in ("bos", "eos", "pad", "unk")}
    largest = max([used, *(index for index in named.values() if index is not None)])
    if largest >= rows:
        raise ValueError(
            f"adapt.llm={outline.name!r}: the tokenizer ({len(outline.tokenizer)} tokens) gives "
            f"the id {largest}, but the model has embeddings for {rows} tokens: take the tokenizer "
            "that belongs to the model, or resize_token_embeddings(len(tokenizer)), and save both"
        )


def position_limit(model: PreTrainedModel) -> int | None:
    """How many positions a model has; None if its configuration names no limit.

    A scaled rotary embedding has more than were trained.
    """
    config = model.config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "max_target_positions", "max_seq_len", "n_ctx")
    limits = [value for name in names if isinstance(value := getattr(config, name, None), int)]
    if not limits or limits[0] <= 0 or getattr(config, "position_embedding_type", "") == "none":
        return None
    limit = limits[0]
    scaling: Any = getattr(config, "rope_parameters", None) or {}
    scaling = scaling if isinstance(scaling, dict) else {}
    if scaling.get("rope_type", "default") != "default" and scaling.get("factor"):
        original = scaling.get("original_max_position_embeddings") or limit
        limit = max(limit, int(original * scaling["factor"]))
    return limit


def check_positions(outline: Outline, longest: dict[str, tuple[int, int]], cures: str) -> None:
    """Refuse prompts that the model has too few positions for.

    Args:
        outline: The language model.
        longest: Numbers of tokens of the longest prompt and of what follows it, by what they are.
        cures: The fields to change, for the message.

    Raises:
        ValueError: Prompt and answer take more positions than there are.
    """
    limit = position_limit(outline.model)
    for what, (prompt, after) in longest.items():
        if limit is not None and prompt + after > limit:
            raise ValueError(
                f"the longest prompt and answer take {prompt + after} tokens ({what}: {prompt} + "
                f"{after}), but adapt.llm={outline.name!r} has {limit} positions: {cures}"
            )


def check_new_tokens(answers: Ragged, max_new_tokens: int | None, num_beams: int = 1) -> None:
    """Refuse a limit under which the longest title can never be generated (ValueError).

    A beam counts, and is compared with others, with the token that ends it.
    """
    longest = int(answers.lengths.max()) - 1  # without eos
    if max_new_tokens is not None and max_new_tokens < longest + (num_beams > 1):
        item = int(np.argmax(answers.lengths))
        raise ValueError(
            f"evaluate.max_new_tokens={max_new_tokens} is too small: the title of item {item} "
            f"takes {longest} tokens{' and its end' if num_beams > 1 else ''}, so no generated "
            f"answer could name it. Give at least "
            f"{longest + 1}, or leave the field out"
        )


def check_adapter(outline: Outline, peft: PeftConfig, owner: str) -> None:
    """Refuse an adapter that does not fit the model.

    Args:
        outline: The language model.
        peft: Configuration of the adapter.
        owner: Name of the arm, for messages.

    Raises:
        ValueError: A module that it names is not in the model, or PEFT cannot wrap the model.
    """
    _check_names(outline.model, peft, owner)
    with warnings.catch_warnings(), peft_wrapping():
        warnings.simplefilter("ignore", UserWarning)
        try:
            get_peft_model(outline.fresh(), _without_start(peft))
        except Exception as error:  # PEFT stumbles over a wrong value in many ways
            said = " ".join(str(error).split())
            raise ValueError(
                f"arm {owner}: PEFT cannot wrap {outline.name!r} with these options: "
                f"{type(error).__name__}: {said}"
            ) from error


def _without_start(peft: PeftConfig) -> PeftConfig:
    """The same adapter with PEFT's default start: others read weights, which an outline lacks."""
    trial = copy.deepcopy(peft)
    if isinstance(trial, LoraConfig):
        trial.init_lora_weights = True
    return trial


def _check_names(model: PreTrainedModel, peft: PeftConfig, owner: str) -> None:
    names = [name for name, _ in model.named_modules()]
    for field in NAMING:
        values = getattr(peft, field, None)
        if not values or isinstance(values, str):
            continue  # a pattern, which PEFT refuses itself if it meets nothing
        literal = [value for value in values if value.replace("_", "").replace(".", "").isalnum()]
        missing = [value for value in literal if not any(_is(name, value) for name in names)]
        if missing:
            raise ValueError(
                f"{SECTION.get(field, field)} of arm {owner} names {', '.join(sorted(missing))}, "
                f"which {type(model).__name__} does not have; its modules are "
                f"{', '.join(_linear_names(model))}: name some of these"
            )
    layers = getattr(peft, "layers_to_transform", None)
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if layers is not None and count is not None:
        asked = [layers] if isinstance(layers, int) else layers
        if any(not isinstance(layer, int) or not 0 <= layer < count for layer in asked):
            raise ValueError(
                f"layers_to_transform={layers!r} of arm {owner}: the model has the layers 0 to "
                f"{count - 1}"
            )
    _check_token_indices(model, peft, owner)


def _check_token_indices(model: PreTrainedModel, peft: PeftConfig, owner: str) -> None:
    indices = getattr(peft, "trainable_token_indices", None)
    lists = indices.values() if isinstance(indices, dict) else [indices or []]
    rows = embedding_rows(model)
    for one in lists:
        if any(not isinstance(index, int) or not 0 <= index < rows for index in one):
            raise ValueError(
                f"trainable_token_indices={indices!r} of arm {owner}: the model has the tokens 0 "
                f"to {rows - 1}"
            )


def _is(name: str, value: str) -> bool:
    return name == value or name.endswith(f".{value}")


def _linear_names(model: nn.Module) -> list[str]:
    """Last parts of the names of all linear layers but the head."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )
