"""Tiny random language models, saved as a user would have them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}


def tiny_model(family: str, vocabulary: int, **settings: Any) -> PreTrainedModel:
    """The same model at every call, whose outputs are of order one."""
    config = AutoConfig.for_model(
        family, **({"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2} | settings)
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            values = torch.randn(module.weight.shape, generator=generator)
            module.weight.data.copy_(values / module.weight.shape[1] ** 0.5)
    model.tie_weights()
    return model.requires_grad_(False)


def saved(folder: Path, family: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Path:
    """The folder of a model and its tokenizer."""
    tiny_model(family, len(tokenizer), pad_token_id=3, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
