"""Benchmark of the gate forms: every form and generator against the paper's softmax."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch
from peft import PeftModel
from torch import Tensor

from peft_ilora.config import GateFormName
from recipes.bench.adapters import kept_bytes, training_step
from recipes.bench.generation import decoding
from recipes.bench.measure import (
    BenchConfig,
    Clock,
    Figure,
    compare,
    difference,
    exact,
    interleaved,
    publish,
)
from recipes.bench.models import ROUTING_DIM, Shape, ilora, lora

BASELINE = "softmax, linear"
INPUTS = ["input_ids", "routing_embeds"]


@dataclass(kw_only=True)
class FormsConfig(BenchConfig):
    """Sizes of the model, the adapter, and the batches of training and decoding."""

    rounds: int = 25
    clock: Clock = "wall"
    """`wall`, or `cpu`: CPU seconds of the process, where other programs run on the machine."""
    shape: Shape = field(default_factory=Shape)
    forms: list[str] = field(default_factory=lambda: list(get_args(GateFormName)))
    """Gate forms to compare with softmax under a linear gate."""
    gates: list[str] = field(default_factory=lambda: ["linear", "trunk"])
    """Generators of each form."""
    batch: int = 8
    """Sequences in a training batch."""
    length: int = 256
    """Tokens in a training sequence."""
    rank: int = 16
    """Total rank of the adapter."""
    experts: int = 4
    """Number of experts of softmax."""
    dropout: float = 0.1
    """Dropout before the low-rank product, in training."""
    decode_batches: list[int] = field(default_factory=lambda: [32, 1])
    """Batches for which decoding is timed."""
    tokens: int = 32
    """Tokens that each timed `generate` makes, after a prompt of one token."""
    steps: int = 8
    """Decode steps in one timing of a loop of forwards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {"forms": get_args(GateFormName), "gates": ("linear", "mlp", "trunk")}
        for name, allowed in known.items():
            for value in getattr(self, name):
                if value not in allowed:
                    raise ValueError(f"{name}={value!r} must be among {', '.join(allowed)}")


def run(config: FormsConfig) -> list[Figure]:
    """Time training and decode steps of each form, and count the bytes that training keeps."""
    torch.set_num_threads(config.threads)
    models = _models(config)
    notes: dict[str, object] = {"largest difference at the start": _check(config, models)}
    _open_gates(models)
    figures = _training(config, models, notes)
    for model in models.values():
        model.eval()
    for batch in config.decode_batches:
        figures += _decoding(config, models, batch)
    publish("forms", config, figures, notes)
    return figures


def _models(config: FormsConfig) -> dict[str, PeftModel]:
    """One model for each form and generator, at the start, with the same A and B."""
    names = [f"{form}, {gate}" for gate in config.gates for form in config.forms]
    return {
        name: ilora(
            config.shape,
            config.device,
            config.experts,
            config.rank,
            config.dropout,
            gate_form=name.split(", ")[0],
            gate=name.split(", ")[1],
            gate_init="zeros",
        )
        for name in dict.fromkeys([BASELINE, *names])
    }


def _check(config: FormsConfig, models: dict[str, PeftModel]) -> float:
    """The largest difference between outputs of a form at its start and of plain LoRA.

    Raises:
        ValueError: See `difference`.
    """
    batch = _batch(config, config.batch, config.length)
    plain = lora(config.shape, config.device, config.rank).eval()
    with torch.no_grad():
        expected = plain(input_ids=batch["input_ids"]).logits
        return difference((model.eval()(**batch).logits, expected) for model in models.values())


def _open_gates(models: dict[str, PeftModel]) -> None:
    """Let all gates depend on what they read, as in the middle of a training."""
    generator = torch.Generator().manual_seed(3)
    for model in models.values():
        for name, parameter in model.named_parameters():
            if "ilora_gate" in name:
                values = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.data.copy_(values)


def _batch(config: FormsConfig, rows: int, length: int) -> dict[str, Tensor]:
    torch.manual_seed(2)
    ids = torch.randint(1, config.shape.vocabulary, (rows, length))
    embeds = torch.randn(rows, ROUTING_DIM)
    return {"input_ids": ids.to(config.device), "routing_embeds": embeds.to(config.device)}


def _training(
    config: FormsConfig, models: dict[str, PeftModel], notes: dict[str, object]
) -> list[Figure]:
    batch = _batch(config, config.batch, config.length)
    sides = {name: training_step(model.train(), INPUTS, batch) for name, model in models.items()}
    figures = _compared(config, "training step", sides, 1.02)
    kept = {name: kept_bytes(model, INPUTS, batch) for name, model in models.items()}
    notes["bytes kept for backward"] = kept
    for name, count in kept.items():
        if name != BASELINE:
            ratio = count / kept[BASELINE]
            figures.append(exact(f"bytes kept for backward, {name}", BASELINE, ratio, 1.02))
    return figures


def _decoding(config: FormsConfig, models: dict[str, PeftModel], rows: int) -> list[Figure]:
    """Decode steps of `generate`, which asks the gate once, and of a loop, which asks each time."""
    batch = _batch(config, rows, 1)

    def generating(model: PeftModel) -> Callable[[], object]:
        length = {"max_new_tokens": config.tokens, "min_new_tokens": config.tokens}
        return lambda: model.generate(**batch, **length, do_sample=False)

    with torch.inference_mode():
        sides = {name: generating(model) for name, model in models.items()}
        figures = _compared(config, f"decode step of generate, batch {rows}", sides, 1.03, 1.05)
        given = {"routing_embeds": batch["routing_embeds"]}
        loops = {
            name: decoding(model, batch["input_ids"], config.steps, given)
            for name, model in models.items()
        }
        figures += _compared(config, f"decode step of a loop, batch {rows}", loops)
    return figures


def _compared(
    config: FormsConfig,
    what: str,
    sides: Mapping[str, Callable[[], object]],
    target: float | None = None,
    of_square: float | None = None,
) -> list[Figure]:
    """Compare every side with the baseline, in one interleaved run.

    Args:
        config: Gives rounds, device and clock.
        what: What is measured.
        sides: Functions to time, by form and generator.
        target: Upper bound of a side's ratio, missed when the lower quartile lies above.
        of_square: The one of `square`; None: the same.
    """
    times = interleaved(sides, config.rounds, config.device, config.clock)
    figures = []
    for name in sides:
        if name != BASELINE:
            bound = of_square if of_square and name.startswith("square") else target
            figures.append(
                compare(f"{what}, {name}", times, name, BASELINE, bound, by_quartile=True)
            )
    return figures
