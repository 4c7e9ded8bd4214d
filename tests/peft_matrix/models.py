"""Tiny local models in place of those that PEFT's tests download.

They are written as the Hub's client caches a download, so that `from_pretrained(model_id)` finds
them offline, under their own names, by whichever class asks.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

_REVISION = "0" * 40
_IDS: dict[str, Any] = {  # the tests feed the ids below 10, which padding would silence
    "vocab_size": 1024,
    "bos_token_id": 1021,
    "eos_token_id": 1022,
    "pad_token_id": 1023,
}
_ROTARY: dict[str, Any] = _IDS | {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
_OPT: dict[str, Any] = _IDS | {
    "hidden_size": 16,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 16,
}
_GPT: dict[str, Any] = _IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def _opt() -> PreTrainedModel:
    return OPTForCausalLM(OPTConfig(**_OPT))


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_ROTARY))


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**_GPT))


def _gptj() -> PreTrainedModel:
    return GPTJForCausalLM(GPTJConfig(**_GPT, rotary_dim=4, tie_word_embeddings=False))


def _qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_ROTARY))


def _gemma3() -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**_ROTARY, head_dim=4))


def _bert() -> PreTrainedModel:
    sizes = {name: size for name, size in _ROTARY.items() if name != "num_key_value_heads"}
    return BertForSequenceClassification(BertConfig(**sizes))


MODELS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": _opt,
    "peft-internal-testing/opt-125m": _opt,
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": _gpt2,
    "gpt2": _gpt2,
    "peft-internal-testing/tiny-random-GPTJForCausalLM": _gptj,
    "trl-internal-testing/tiny-random-LlamaForCausalLM": _llama,
    "peft-internal-testing/tiny-dummy-qwen2": _qwen2,
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": _gemma3,
    "bert-base-uncased": _bert,
}
"""How to make the model that takes the place of a download."""


def write_models(cache: Path) -> None:
    """Write every model into a folder that serves as `HF_HUB_CACHE`."""
    for model_id, make in MODELS.items():
        torch.manual_seed(0)
        repository = cache / f"models--{model_id.replace('/', '--')}"
        make().save_pretrained(repository / "snapshots" / _REVISION)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(_REVISION, encoding="utf-8")
