"""How long an adapter is trained, in optimiser steps."""

import math
from collections.abc import Collection
from typing import Any

from recipes.experiment import AdaptConfig, AdapterSettings, Experiment


def steps_of_epoch(settings: AdapterSettings, num_rows: int) -> int:
    """Optimiser steps of one pass over `num_rows` train windows, the last with fewer prompts."""
    return math.ceil(num_rows / settings.batch_size)


def training_steps(settings: AdapterSettings, num_rows: int) -> int:
    """Optimiser steps of a training on `num_rows` train windows."""
    if settings.epochs is None:
        assert settings.max_steps is not None  # see `check_duration`
        return settings.max_steps
    return math.ceil(settings.epochs * steps_of_epoch(settings, num_rows))


def measured_steps(
    at: Collection[int], every: float | None, *, total: int, epoch: int, last: bool
) -> tuple[int, ...]:
    """The optimiser steps after which an adapter is measured on validation, in order.

    Args:
        at: Steps that are named (`adapt.validate_at`).
        every: Epochs from one measurement to the next (`adapt.validate_every`).
        total: Steps of the training.
        epoch: Steps of an epoch.
        last: Whether the last step is measured in any case.
    """
    found = {*at, *([total] if last else [])}
    if every is not None:
        count = math.floor(total / (every * epoch) + 1e-9)
        found |= {max(1, round(number * every * epoch)) for number in range(1, count + 1)}
    return tuple(sorted(step for step in found if step <= total))


def check_duration(owner: str, settings: AdapterSettings) -> None:
    """Refuse a training without an end, or with two.

    Args:
        owner: Names the arm's method in messages, such as `method lora`.
        settings: The arm's settings.

    Raises:
        ValueError: Not exactly one of `max_steps` and `epochs` is given.
    """
    steps, epochs = settings.max_steps, settings.epochs
    if steps is None and epochs is None:
        raise ValueError(f"{owner}: neither adapt.max_steps nor adapt.epochs is given: set one")
    if steps is not None and epochs is not None:
        raise ValueError(
            f"{owner}: adapt.max_steps={steps} and adapt.epochs={epochs:g} both say how long to "
            "train: set one of them to null"
        )


def measurement_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings of measurement and choice that differ from their defaults.

    They are all that a training's files depend on; an experiment that measures nothing has none.
    """
    config, evaluate = experiment.adapt, experiment.evaluate
    names = ("validate_at", "validate_every", "keep", "patience")
    default = AdaptConfig()
    found = {name: getattr(config, name) for name in names}
    found = {name: one for name, one in found.items() if one != getattr(default, name)}
    if not found:
        return {}
    ranked = {"length_normalised": True} if evaluate.length_normalised else {}
    return {**found, **ranked, "validate_rows": config.validate_rows}
