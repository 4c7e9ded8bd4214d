"""Measures an adapter while it is trained: for the curve of a report, and to choose a step by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipes.artifacts import read_tensors, write_tensors
from recipes.llm.hybrid_model import HybridModel

MEASURED = "validation"
"""Key of a measurement in the Trainer's log."""
BEST = "best.safetensors"
"""The best step's weights, in a checkpoint."""
Measure = Callable[[HybridModel], float]
"""A figure of a model in evaluation mode, which it leaves as it is."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """When an adapter is measured, and what is made of it."""

    steps: tuple[int, ...]
    """The optimiser steps after which it is measured."""
    measure: Measure
    keeps_best: bool = False
    """Whether the weights of the best step are kept, in place of those of the last."""
    patience: int | None = None
    """See `adapt.patience`."""


class Validation(TrainerCallback):
    """Measures the model after some steps, and keeps the figures in the Trainer's log.

    Log and best weights are a part of every checkpoint, so a resumed training has the figures of
    before, stops where an undisturbed one does, and chooses the same step.

    Args:
        model: The model that is trained.
        plan: When it is measured, and what is made of it.
    """

    def __init__(self, model: HybridModel, plan: Measurements) -> None:
        self.model = model
        self.plan = plan
        self.best: dict[str, Tensor] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step not in self.plan.steps:
            return
        training = self.model.training
        self.model.eval()
        state.log_history.append(
            {"step": state.global_step, MEASURED: self.plan.measure(self.model)}
        )
        self.model.train(training)
        if self.plan.keeps_best and best_of(measured(state))["step"] == state.global_step:
            self.best = {name: one.cpu().clone() for name, one in self._trained().items()}
        if self.is_over(state):
            control.should_training_stop = True
            control.should_save = True

    def is_over(self, state: TrainerState) -> bool:
        """Whether patience is at an end."""
        curve = measured(state)
        if self.plan.patience is None or not curve:
            return False
        steps = [entry["step"] for entry in curve]
        return len(steps) - 1 - steps.index(best_of(curve)["step"]) >= self.plan.patience

    def save(self, checkpoint: Path) -> None:
        """Write the best weights, if there are any yet."""
        if self.best:
            write_tensors(checkpoint / BEST, self.best)

    def load(self, checkpoint: Path) -> None:
        """Read what `save` wrote."""
        path = checkpoint / BEST
        self.best = read_tensors(path) if path.exists() else {}

    def restore(self) -> None:
        """Give the model the weights of the best step, if they are to be kept."""
        with torch.no_grad():
            for name, one in self._trained().items() if self.plan.keeps_best else ():
                one.copy_(self.best[name])

    def _trained(self) -> dict[str, Tensor]:
        groups = self.model.trainable_parameters().values()
        return {name: one.detach() for group in groups for name, one in group.items()}


def best_of(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """The entry of a curve with the highest figure; the first of equals."""
    return max(curve, key=lambda entry: entry[MEASURED])


def measured(state: TrainerState) -> list[dict[str, float]]:
    """The curve, a list of `{"step": .., "validation": ..}`."""
    return [
        {"step": entry["step"], MEASURED: entry[MEASURED]}
        for entry in state.log_history
        if MEASURED in entry
    ]
