"""Loads a language model and its tokenizer, or refuses them in one line.

Only what a checkpoint holds is loaded: no pickle, no code of its own, and no weight that the
checkpoint lacks, which transformers would draw at random.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from recipes.experiment import Precision
from recipes.pretrained import explained
from recipes.prompting.special_tokens import find_id

REMEDY = "give a Hugging Face causal LM by name or path, `smollm2` or `stand-in`"


@dataclass(frozen=True)
class Outline:
    """A language model without its weights: what can be checked before they are loaded."""

    name: str
    """As the user wrote it, for messages."""
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    """On the device `meta`."""

    def fresh(self) -> PreTrainedModel:
        """The same model anew, for a trial that changes it."""
        return empty_model(self.model.config)


def load_outline(name_or_path: str) -> Outline:
    """Load tokenizer and configuration, and build the model without weights.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is damaged, or no causal language model.
    """
    with explained("adapt.llm", name_or_path, REMEDY):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ValueError(f"{config.model_type} is an encoder-decoder, not a causal LM")
        model = empty_model(config)
        tokenizer = _tokenizer(name_or_path)
    fit_padding(tokenizer, model)
    return Outline(name_or_path, tokenizer, model)


def empty_model(config: Any) -> PreTrainedModel:
    """A causal LM on the device `meta`."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def load_language_model(
    name_or_path: str, precision: Precision
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a frozen language model and its tokenizer. Code from its repository is never run.

    Args:
        name_or_path: Repository on the Hugging Face hub, or a folder that `save_pretrained` wrote.
        precision: `bf16` loads the weights as bfloat16; adapters stay in float32.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is damaged, lacks weights, or cannot be used here.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with explained("adapt.llm", name_or_path, REMEDY):
        tokenizer = _tokenizer(name_or_path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = loaded
        _refuse_other_weights(model, report)
    fit_padding(tokenizer, model)
    return model.requires_grad_(False).eval(), tokenizer


def fit_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Pad on the left, with a token that the model has.

    Any token may serve as padding, since the attention mask and the labels hide it. So eos takes
    the place of a pad token that is missing, or that the embeddings were not enlarged for.
    """
    tokenizer.padding_side = "left"
    pad = find_id(tokenizer, "pad")
    if pad is None or pad >= embedding_rows(model):
        tokenizer.pad_token = tokenizer.eos_token


def embedding_rows(model: PreTrainedModel) -> int:
    """The number of tokens that the model has an embedding for."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]


def _tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)


def _refuse_other_weights(model: PreTrainedModel, report: dict) -> None:
    """Refuse a checkpoint that does not hold exactly this model's weights (ValueError)."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "the folder holds an adapter beside the model: merge it (`merge_and_unload`) and save "
            "the merged model"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            "its weights are quantised: take the checkpoint that is not, with "
            "`--adapt.precision bf16` if memory is short"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as "
            f"{missing[0]}, which would start at random: take a checkpoint that was saved as a "
            "causal LM"
        )
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for key in sorted(report["unexpected_keys"]):
        if any(key.startswith(f"{name}.") for name in layers):
            raise ValueError(
                f"the checkpoint holds {key}, which its config.json has no layer for: restore the "
                "config.json that was saved with it"
            )
