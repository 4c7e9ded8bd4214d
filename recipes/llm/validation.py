"""Measures an adapter while it is trained: the curve of a report. Nothing is chosen by it."""

from collections.abc import Callable, Collection
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from recipes.llm.hybrid_model import HybridModel

MEASURED = "validation"
"""Key of a measurement in the Trainer's log."""
Measure = Callable[[HybridModel], float]
"""A figure of a model in evaluation mode, which it leaves as it is."""


class Validation(TrainerCallback):
    """Measures the model after some steps, and keeps the figures in the Trainer's log.

    The log is a part of every checkpoint, so a resumed training has the figures of before.

    Args:
        model: The model that is trained.
        steps: The optimiser steps after which it is measured.
        measure: What is measured.
    """

    def __init__(self, model: HybridModel, steps: Collection[int], measure: Measure) -> None:
        self.model = model
        self.steps = set(steps)
        self.measure = measure

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        if state.global_step not in self.steps:
            return
        training = self.model.training
        self.model.eval()
        state.log_history.append({"step": state.global_step, MEASURED: self.measure(self.model)})
        self.model.train(training)


def measured(state: TrainerState) -> list[dict[str, float]]:
    """The curve, a list of `{"step": .., "validation": ..}`."""
    return [
        {"step": entry["step"], MEASURED: entry[MEASURED]}
        for entry in state.log_history
        if MEASURED in entry
    ]
