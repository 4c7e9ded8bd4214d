"""Tiny random models and adapters, made on the spot."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from peft_ilora import ILoRAConfig

ROUTING_DIM = 8


def tiny_llama(**overrides: Any) -> LlamaForCausalLM:
    """The same two-layer Llama at every call."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 60,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_dropout": 0.0,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | overrides)).eval()


def randomised(model: PeftModel, seed: int = 1) -> PeftModel:
    """Give B values, so that the adapter does something, and the gate a strong opinion."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "ilora_gate" in name:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(values * (0.5 if "ilora_gate" in name else 0.1))
    return model


def adapted(task_type: str | None = "CAUSAL_LM", layers: int = 2, **config: Any) -> PeftModel:
    """A tiny Llama with a randomised iLoRA on the attention and MLP layers."""
    settings: dict[str, Any] = {
        "routing_dim": ROUTING_DIM,
        "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"],
        "task_type": task_type,
    }
    base = tiny_llama(num_hidden_layers=layers)
    return randomised(get_peft_model(base, ILoRAConfig(**settings | config))).eval()


@pytest.fixture
def llama() -> PeftModel:
    return adapted()


@pytest.fixture
def make_adapted() -> Callable[..., PeftModel]:
    return adapted


@pytest.fixture
def make_llama() -> Callable[..., LlamaForCausalLM]:
    return tiny_llama


@pytest.fixture
def randomise() -> Callable[..., PeftModel]:
    return randomised


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def z() -> Tensor:
    return torch.randn(3, ROUTING_DIM, generator=torch.Generator().manual_seed(3))
