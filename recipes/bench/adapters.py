"""Benchmark of training: iLoRA, PEFT's LoRA, the reference's arithmetic and the frozen base."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from recipes.bench.measure import (
    BenchConfig,
    Figure,
    added,
    compare,
    difference,
    exact,
    interleaved,
    peaks,
    publish,
)
from recipes.bench.models import ROUTING_DIM, Shape, frozen, ilora, lora, referenced

Batch = dict[str, Tensor]


@dataclass(kw_only=True)
class AdaptersConfig(BenchConfig):
    """Sizes of the model, the adapter and the batch of a training step."""

    shape: Shape = field(default_factory=Shape)
    batch: int = 8
    """Sequences in a batch."""
    length: int = 256
    """Tokens in a sequence."""
    rank: int = 16
    """Total rank of the adapter."""
    experts: int = 4
    """Number of experts."""
    dropout: float = 0.1
    """Dropout before the low-rank product. Training is also timed without dropout."""
    growth: bool = True
    """Also time how the cost grows with the number of experts and the rank."""


def run(config: AdaptersConfig) -> list[Figure]:
    """Time training steps, and count the bytes that they keep for the backward pass."""
    torch.set_num_threads(config.threads)
    batch = _batch(config)
    notes: dict[str, object] = {"largest difference of outputs": _check(config, batch)}
    figures = []
    for dropout in (config.dropout, 0.0):
        sides = _sides(config, dropout)
        steps = {
            name: training_step(model, inputs, batch) for name, (model, inputs) in sides.items()
        }
        bare = _bare_products(sides["iLoRA"][0], config)
        times = interleaved(steps | {"products with A and B": bare}, config.rounds, config.device)
        what, of = f"training step, dropout {dropout:g}", "PEFT LoRA"
        figures.append(compare(what, times, "iLoRA", of, 0.85 if dropout else 0.88))
        figures.append(compare(f"frozen base, dropout {dropout:g}", times, "frozen base", of))
        least = added(times, "frozen base", "products with A and B")
        figures.append(
            compare(f"frozen base and bare products, dropout {dropout:g}", least, "sum", of)
        )
        figures.append(compare(what, times, "iLoRA", "reference arithmetic", 0.50))
        kept = {name: kept_bytes(model, inputs, batch) for name, (model, inputs) in sides.items()}
        figures.append(
            exact(
                f"bytes kept for backward, dropout {dropout:g}",
                of,
                kept["iLoRA"] / kept[of],
                0.68 if dropout else None,
            )
        )
        notes[f"bytes kept for backward, dropout {dropout:g}"] = kept
        notes[f"peak memory in bytes, dropout {dropout:g}"] = peaks(steps, config.device)
    if config.growth:
        figures += _growth(config, batch)
    publish("adapters", config, figures, notes)
    return figures


def _batch(config: AdaptersConfig) -> Batch:
    torch.manual_seed(2)
    ids = torch.randint(1, config.shape.vocabulary, (config.batch, config.length))
    embeds = torch.randn(config.batch, ROUTING_DIM)
    return {"input_ids": ids.to(config.device), "routing_embeds": embeds.to(config.device)}


def _sides(config: AdaptersConfig, dropout: float) -> dict[str, tuple[nn.Module, list[str]]]:
    """Each side's model in training mode, and the names of the inputs that it takes."""
    shape, device = config.shape, config.device
    routed = {"experts": config.experts, "rank": config.rank, "dropout": dropout}
    return {
        "iLoRA": (ilora(shape, device, **routed).train(), ["input_ids", "routing_embeds"]),
        "PEFT LoRA": (lora(shape, device, config.rank, dropout).train(), ["input_ids"]),
        "reference arithmetic": (
            referenced(ilora(shape, device, **routed)).train(),
            ["input_ids", "routing_embeds"],
        ),
        "frozen base": (frozen(shape, device).train(), ["input_ids"]),
    }


def _check(config: AdaptersConfig, batch: Batch) -> float:
    """The largest difference between outputs of sides that should compute the same.

    Raises:
        ValueError: See `difference`.
    """
    shape, device = config.shape, config.device
    routed = {"experts": config.experts, "rank": config.rank}
    even = ilora(shape, device, gate_init="zeros", **routed).eval()
    plain = lora(shape, device, config.rank).eval()
    own = ilora(shape, device, **routed).eval()
    naive = referenced(ilora(shape, device, **routed)).eval()
    adapter = {k: v for k, v in own.state_dict().items() if "lora_" in k}
    naive.load_state_dict(adapter, strict=False)
    with torch.no_grad():
        return difference(
            [
                (even(**batch).logits, plain(input_ids=batch["input_ids"]).logits),
                (own(**batch).logits, naive(**batch).logits),
            ]
        )


def training_step(model: nn.Module, inputs: list[str], batch: Batch) -> Callable[[], None]:
    """A function that runs one forward and backward pass, and drops the gradients.

    Args:
        model: The model, in training mode.
        inputs: Names of the inputs that it takes.
        batch: The inputs, by name.
    """
    given = {name: batch[name] for name in inputs}

    def step() -> None:
        model(**given, labels=batch["input_ids"]).loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step


def _bare_products(model: nn.Module, config: AdaptersConfig) -> Callable[[], None]:
    """Runs only the matrix products that every LoRA needs: the least cost of an adapter.

    In every layer these are two in the forward pass and four in the backward pass. Each has a
    result tensor of its own.
    """
    tokens = config.batch * config.length
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [
        (
            layer.lora_A["default"].get_parameter("weight").detach(),
            layer.lora_B["default"].get_parameter("weight").detach(),
        )
        for layer in layers
    ]
    widths = {a.shape[1] for a, _ in weights} | {b.shape[0] for _, b in weights}
    dtype, device = weights[0][0].dtype, config.device
    full = {width: torch.randn(tokens, width, dtype=dtype, device=device) for width in widths}
    hidden = torch.randn(tokens, config.rank, dtype=dtype, device=device)

    def run() -> None:
        for a, b in weights:
            x, out = full[a.shape[1]], full[b.shape[0]]
            for left, right in (
                (x, a.t()),
                (hidden, b.t()),
                (out, b),
                (hidden.t(), out),
                (hidden.t(), x),
                (hidden, a),
            ):
                torch.mm(left, right)

    return run


def kept_bytes(model: nn.Module, inputs: list[str], batch: Batch) -> int:
    """Bytes of the tensors, other than parameters, that autograd keeps between the passes."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # else its address could be reused for another tensor
        return tensor

    given = {name: batch[name] for name in inputs}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**given, labels=batch["input_ids"])
    return sum(seen.values())


def _growth(config: AdaptersConfig, batch: Batch) -> list[Figure]:
    """Compare training steps over the number of experts, at constant total rank, and over ranks."""
    shape, device = config.shape, config.device
    takes = ["input_ids", "routing_embeds"]
    figures = []
    by_experts = {
        f"{k} experts": training_step(ilora(shape, device, k, 64).train(), takes, batch)
        for k in (1, 4, 16, 64)
    }
    times = interleaved(by_experts, config.rounds, device)
    for name in list(by_experts)[1:]:
        what = f"training step, {name} at total rank 64"
        figures.append(compare(what, times, name, "1 experts", 1.03))
    by_rank = {
        f"rank {rank}": training_step(ilora(shape, device, 4, rank).train(), takes, batch)
        for rank in (16, 32, 64)
    }
    times = interleaved(by_rank, config.rounds, device)
    for name in list(by_rank)[1:]:
        figures.append(compare(f"training step, {name}", times, name, "rank 16"))
    return figures
