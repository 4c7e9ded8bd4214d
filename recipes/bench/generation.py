"""Benchmark of inference: prefill and decoding against PEFT's LoRA, and the gate's overhead."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from recipes.bench.measure import (
    BenchConfig,
    Figure,
    compare,
    difference,
    interleaved,
    peaks,
    publish,
)
from recipes.bench.models import ROUTING_DIM, Shape, frozen, ilora, lora


@dataclass(kw_only=True)
class GenerationConfig(BenchConfig):
    """Sizes of the model, the adapter and the prompts."""

    rounds: int = 25
    shape: Shape = field(default_factory=Shape)
    batch: int = 32
    """Prompts in a batch. Decoding is also timed for a single prompt."""
    prompt: int = 32
    """Tokens in a prompt."""
    steps: int = 8
    """Decode steps in one timing."""
    rank: int = 16
    """Total rank of the adapter."""
    experts: int = 4
    """Number of experts."""
    overhead_layers: int = 32
    """Number of layers of the model in which the gate's overhead is timed."""


def run(config: GenerationConfig) -> list[Figure]:
    """Time prefill, decode steps and the gate's overhead."""
    torch.set_num_threads(config.threads)
    shape, device = config.shape, config.device
    # With a uniform gate both models compute the same.
    routed = ilora(shape, device, config.experts, config.rank, gate_init="zeros").eval()
    plain = lora(shape, device, config.rank).eval()
    base = frozen(shape, device).eval()
    figures, memory = [], {}
    with torch.inference_mode():
        worst = 0.0
        for batch, target in ((config.batch, 1.0), (1, 1.0)):
            ids = torch.randint(1, shape.vocabulary, (batch, config.prompt), device=device)
            given = {"routing_embeds": torch.randn(batch, ROUTING_DIM, device=device)}
            a, b = routed(input_ids=ids, **given).logits, plain(input_ids=ids).logits
            worst = max(worst, difference([(a, b)]))
            prefill = {
                "iLoRA": lambda ids=ids, given=given: routed(input_ids=ids, **given),
                "PEFT LoRA": lambda ids=ids: plain(input_ids=ids),
                "frozen base": lambda ids=ids: base(input_ids=ids),
            }
            if batch > 1:
                times = interleaved(prefill, config.rounds, device)
                what = f"prefill, batch {batch} x {config.prompt}"
                memory[what] = peaks(prefill, device)
                figures += [
                    compare(what, times, "iLoRA", "PEFT LoRA", 0.95),
                    compare(f"{what}, frozen base", times, "frozen base", "PEFT LoRA"),
                ]
            decode = {
                "iLoRA": decoding(routed, ids, config.steps, given),
                "PEFT LoRA": decoding(plain, ids, config.steps, {}),
                "frozen base": decoding(base, ids, config.steps, {}),
            }
            times, what = interleaved(decode, config.rounds, device), f"decode step, batch {batch}"
            memory[what] = peaks(decode, device)
            figures += [
                compare(what, times, "iLoRA", "PEFT LoRA", target),
                compare(f"{what}, frozen base", times, "frozen base", "PEFT LoRA"),
            ]
        figures.append(_overhead(config))
    notes = {"largest difference of outputs": worst, "peak memory in bytes": memory}
    publish("generation", config, figures, notes)
    return figures


def decoding(
    model: nn.Module, ids: torch.Tensor, steps: int, given: dict[str, Any]
) -> Callable[[], None]:
    """A function that runs decode steps after a prompt and then crops the cache back to the prompt.

    Args:
        model: The model to run.
        ids: Token ids of the prompts, [batch, length].
        steps: Number of decode steps.
        given: Further inputs of each forward.
    """
    cache = model(input_ids=ids, use_cache=True, **given).past_key_values
    token = ids[:, -1:]

    def run() -> None:
        for _ in range(steps):
            model(input_ids=token, past_key_values=cache, use_cache=True, **given)
        cache.crop(-steps)

    return run


def _overhead(config: GenerationConfig) -> Figure:
    """Compare a forward with routing to one without, which mixes the experts uniformly."""
    shape = replace(config.shape, layers=config.overhead_layers)
    settings = {"experts": config.experts, "rank": config.rank, "missing_routing": "uniform"}
    model = ilora(shape, config.device, gate_init="zeros", **settings).eval()
    size = (config.batch, config.prompt)
    ids = torch.randint(1, shape.vocabulary, size, device=config.device)
    embeds = torch.randn(config.batch, ROUTING_DIM, device=config.device)
    sides = {
        "with gate and context": lambda: model(input_ids=ids, routing_embeds=embeds),
        "without": lambda: model(input_ids=ids),
    }
    times = interleaved(sides, config.rounds, config.device)
    what = f"forward with gate and context, {config.overhead_layers} layers"
    return compare(what, times, "with gate and context", "without", 1.01)
