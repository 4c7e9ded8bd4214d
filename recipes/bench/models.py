"""The models that benchmarks time: all methods on one shape, with the same base weights."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from peft_ilora import ILoRAConfig
from peft_ilora.layers.update import GatedLinear

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROUTING_DIM = 64


@dataclass(kw_only=True, frozen=True)
class Shape:
    """Sizes of a Llama model. Those of Llama-2-7B are 4096, 11008, 32, 32, 32000, in this order."""

    hidden_size: int = 512
    """Hidden width."""
    intermediate_size: int = 1376
    """Width of the MLP."""
    layers: int = 4
    """Number of decoder layers."""
    heads: int = 8
    """Attention heads of each layer."""
    vocabulary: int = 1000
    """Size of the vocabulary."""
    dtype: str = "float32"
    """Torch dtype of the base model."""
    load_in_4bit: bool = False
    """Quantise the base model's linear layers with bitsandbytes (nf4)."""


def base_model(shape: Shape, device: str) -> LlamaForCausalLM:
    """A Llama with random weights, which all models of a shape share in memory."""
    made = _made(shape, device)
    shared = {id(parameter): parameter for parameter in made.parameters()}
    return copy.deepcopy(made, shared)


@cache
def _made(shape: Shape, device: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        pad_token_id=0,
        eos_token_id=None,
        dtype=shape.dtype,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(getattr(torch, shape.dtype)).requires_grad_(False)
    if shape.load_in_4bit:
        _quantise(model, device)
    return model


def _quantise(model: LlamaForCausalLM, device: str) -> None:
    from bitsandbytes.nn.modules import LinearNF4, Params4bit

    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if leaf in TARGETS and isinstance(module, nn.Linear):
            made = LinearNF4(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=module.weight.dtype,
            )
            made.support_avx512bf16_for_cpu = False  # repacked weights have no backward pass
            made.weight = Params4bit(module.weight.data, False, quant_type="nf4")  # pyright: ignore[reportCallIssue]
            setattr(model.get_submodule(parent), leaf, made.to(device))
    setattr(model, "is_loaded_in_4bit", True)  # noqa: B010  # PEFT checks this attribute


def frozen(shape: Shape, device: str) -> nn.Module:
    """The base model without an adapter; gradients pass through it down to the embeddings."""
    model = base_model(shape, device)
    model.enable_input_require_grads()
    return model


def lora(shape: Shape, device: str, rank: int = 16, dropout: float = 0.0) -> PeftModel:
    """The base model with PEFT's LoRA on the linear layers in `TARGETS`."""
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=TARGETS)
    return _filled(get_peft_model(base_model(shape, device), config))


def ilora(
    shape: Shape,
    device: str,
    experts: int = 4,
    rank: int = 16,
    dropout: float = 0.0,
    **fields: Any,
) -> PeftModel:
    """The base model with iLoRA of total rank `rank`; under a uniform gate it equals `lora`."""
    config = ILoRAConfig(
        num_experts=experts,
        r=rank // experts,
        lora_alpha=rank,
        lora_dropout=dropout,
        routing_dim=ROUTING_DIM,
        target_modules=TARGETS,
        **fields,
    )
    return _filled(get_peft_model(base_model(shape, device), config))


def _filled(model: PeftModel) -> PeftModel:
    """Fill A and B with small random values, drawn from the same seed in every method."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            values = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.copy_(values)
    return model


def referenced(model: PeftModel) -> PeftModel:
    """Make an iLoRA model compute as the reference code does.

    Its layers compute every expert's full-width output, [batch, length, num_experts, out], and then
    the weighted sum over experts.
    """
    for module in model.modules():
        variants = getattr(module, "lora_variant", {})
        if "default" in variants:
            variants["default"] = _ReferenceUpdate(variants["default"])
    return model


class _ReferenceUpdate(LoraVariant):
    def __init__(self, update: GatedLinear) -> None:
        self.update = update

    def forward(  # type: ignore[override]  # PEFT declares it static; it calls it on the instance
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        experts = self.update.coordinates.num_experts
        routing = self.update.state.current
        assert routing is not None
        weights = self.update.gate(routing.embeds) * module.scaling[active_adapter]
        b = module.lora_B[active_adapter].weight
        x = module.lora_dropout[active_adapter](x.to(b.dtype))
        hidden = module.lora_A[active_adapter](x).unflatten(-1, (experts, -1))
        # [batch, length, K, rank] [out, K, rank] -> [batch, length, K, out]
        outputs = torch.einsum("btkr,okr->btko", hidden, b.unflatten(1, (experts, -1)))
        mixed = torch.einsum("btko,bk->bto", outputs, weights)
        return (result + mixed).to(result.dtype)
