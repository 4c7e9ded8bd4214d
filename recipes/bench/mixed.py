"""Benchmark of mixed batches: iLoRA against PEFT's `adapter_names` with one LoRA per instance."""

from dataclasses import dataclass, field

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from peft_ilora import ILoRAModel
from recipes.bench.generation import decoding
from recipes.bench.measure import (
    BenchConfig,
    Figure,
    compare,
    difference,
    interleaved,
    peaks,
    publish,
)
from recipes.bench.models import ROUTING_DIM, Shape, base_model, frozen, ilora


@dataclass(kw_only=True)
class MixedConfig(BenchConfig):
    """Sizes of the model, the adapter and a batch whose rows all have weights of their own."""

    shape: Shape = field(default_factory=Shape)
    instances: int = 64
    """Rows in the batch, each with a routing embedding of its own."""
    prompt: int = 16
    """Tokens in a prompt."""
    steps: int = 2
    """Decode steps in one timing."""
    rank: int = 16
    """Total rank of the adapter."""
    experts: int = 4
    """Number of experts."""


def run(config: MixedConfig) -> list[Figure]:
    """Time prefill and decode steps of a mixed batch."""
    torch.set_num_threads(config.threads)
    shape, device = config.shape, config.device
    routed = ilora(shape, device, config.experts, config.rank).eval()
    for name, parameter in routed.named_parameters():
        if "ilora_gate" in name:
            parameter.data.mul_(10)  # so that the instances' expert weights differ
    embeds = torch.randn(config.instances, ROUTING_DIM, device=device)
    plain = one_lora_each(routed, embeds, config).eval()
    base = frozen(shape, device).eval()
    names = [f"user{i}" for i in range(config.instances)]
    size = (config.instances, config.prompt)
    ids = torch.randint(1, shape.vocabulary, size, device=device)
    figures, memory = [], {}
    with torch.inference_mode():
        own, theirs = {"routing_embeds": embeds}, {"adapter_names": names}
        a, b = routed(input_ids=ids, **own).logits, plain(input_ids=ids, **theirs).logits
        worst = difference([(a, b)])
        prefill = {
            "iLoRA": lambda: routed(input_ids=ids, **own),
            "adapter_names": lambda: plain(input_ids=ids, **theirs),
            "frozen base": lambda: base(input_ids=ids),
        }
        decode = {
            "iLoRA": decoding(routed, ids, config.steps, own),
            "adapter_names": decoding(plain, ids, config.steps, theirs),
            "frozen base": decoding(base, ids, config.steps, {}),
        }
        for what, sides, target in (
            (f"decode step of {config.instances} instances", decode, 8.0),
            (f"prefill {config.instances} x {config.prompt}", prefill, 2.5),
        ):
            times, of = interleaved(sides, config.rounds, device), "adapter_names"
            memory[what] = peaks(sides, device)
            figures += [
                compare(f"{what}, times faster", times, "iLoRA", of, target, at_least=True),
                compare(f"{what}, frozen base", times, "frozen base", of, at_least=True),
            ]
    notes = {"largest difference of outputs": worst, "peak memory in bytes": memory}
    publish("mixed", config, figures, notes)
    return figures


def one_lora_each(routed: PeftModel, embeds: Tensor, config: MixedConfig) -> PeftModel:
    """A model with one plain LoRA for each instance, equal to what iLoRA is for that instance.

    Args:
        routed: A model with an iLoRA adapter.
        embeds: [instances, routing_dim], routing embeddings.
        config: Gives the shape and device of the base model.
    """
    base = base_model(config.shape, config.device)
    tuner = routed.base_model
    assert isinstance(tuner, ILoRAModel)
    plain: PeftModel | None = None
    state = {name: value for name, value in routed.state_dict().items() if ".lora_A." in name}
    for i, z in enumerate(embeds):
        lora_config, folded = tuner.plain_lora(z[None])
        settings = {key: getattr(lora_config, key) for key in ("r", "lora_alpha", "target_modules")}
        name, own = f"user{i}", LoraConfig(**settings)
        if plain is None:
            plain = PeftModel(base, own, adapter_name=name)
        else:
            plain.add_adapter(name, own)
        values = {key.replace(".default.", f".{name}."): value for key, value in state.items()}
        for key, b in folded.items():
            values[f"base_model.model.{key}".replace("lora_B", f"lora_B.{name}")] = b
        plain.load_state_dict(values, strict=False)
    assert plain is not None
    return plain
