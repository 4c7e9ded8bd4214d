"""How well an adapter ranks validation rows while it is trained, and when that is measured."""

import numpy as np

from recipes.experiment import AdaptConfig, AdapterSettings, EvaluateConfig
from recipes.llm.adapted import AdaptedModel
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.divergence import DivergenceError
from recipes.llm.duration import measured_steps, steps_of_epoch, training_steps
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.validation import Measure
from recipes.recommenders.vectors import Vectors
from recipes.run import Run
from recipes.scoring.arrays import Floats, Ints
from recipes.scoring.rank import score_candidates
from recipes.scoring.rows import EvaluatedRows, evaluated_rows


def measures(config: AdaptConfig) -> bool:
    """Whether adapters are measured while they are trained."""
    return bool(config.validate_at) or config.validate_every is not None


def check_validation(owner: str, config: AdaptConfig, settings: AdapterSettings) -> None:
    """Refuse measurements that would never be made, or not of the model that is trained.

    Args:
        owner: Names the arm's method in messages, such as `method lora`.
        config: The section `adapt`.
        settings: The arm's settings.

    Raises:
        ValueError: The message names the setting and the remedy.
    """
    if config.patience is not None and config.keep == "last":
        raise ValueError(
            f"adapt.patience={config.patience} ends a training some measurements after the best, "
            "but adapt.keep='last' leaves the last: set adapt.keep best"
        )
    if config.keep == "best" and not measures(config):
        raise ValueError(
            "adapt.keep='best' chooses among measured steps: name some in adapt.validate_at, or "
            "set adapt.validate_every 1"
        )
    if settings.max_steps is not None:
        check_steps(owner, config, settings.max_steps)
    if measures(config) and settings.frozen_prefix:
        raise ValueError(
            f"{owner}: adapt.validate_at={config.validate_at} and adapt.validate_every="
            f"{config.validate_every} read whole prompts, and adapt.frozen_prefix trains without "
            "the layers below: leave one out"
        )


def check_steps(owner: str, config: AdaptConfig, total: int) -> None:
    """Refuse steps of `adapt.validate_at` after the end of a training.

    Args:
        owner: Names the arm's method in messages, such as `method lora`.
        config: The section `adapt`.
        total: Optimiser steps of the training.

    Raises:
        ValueError: The message names the step and the remedy.
    """
    late = [step for step in config.validate_at if step > total]
    if late:
        raise ValueError(
            f"{owner}: adapt.validate_at names step {late[0]}, but the training ends at step "
            f"{total} (adapt.max_steps, adapt.epochs): leave it out"
        )


def measurement_steps(
    config: AdaptConfig, settings: AdapterSettings, num_rows: int
) -> tuple[int, ...]:
    """The optimiser steps after which an adapter that trains on `num_rows` windows is measured."""
    return measured_steps(
        config.validate_at,
        config.validate_every,
        total=training_steps(settings, num_rows),
        epoch=steps_of_epoch(settings, num_rows),
        last=config.keep == "best",
    )


def hit_ratio_on_validation(run: Run, plan: AdapterPlan, vectors: Vectors | None) -> Measure:
    """What measures HitRatio@1 on rows of validation, ranked as in the stage `evaluate`."""
    chosen, settings = validation_rows(run, plan.settings), plan.settings
    rows, targets = chosen.rows.tolist(), chosen.target_index[:, None]

    def measure(hybrid: HybridModel) -> float:
        adapted = AdaptedModel(
            hybrid,
            run.prompts,
            vectors,
            prompt_history=settings.prompt_history,
            user_slot=plan.user_slot,
            slots=settings.item_slots,
            hybrid_prompts=plan.hybrid_at_test,
            listed=settings.list_candidates,
        )
        scores = score_candidates(
            adapted,
            chosen.split,
            rows,
            adapted.prompt_lengths(chosen.split, rows),
            chosen.candidates,
            batch_size=run.experiment.evaluate.batch_size,
            length_normalised=run.experiment.evaluate.length_normalised,
            title=f"validate {plan.label}",
        )
        if not np.isfinite(scores).all(axis=1).any():
            raise DivergenceError(
                f"{plan.label} has diverged (no row of validation has finite scores): lower "
                f"adapt.learning_rate={settings.learning_rate:g}"
            )
        return expected_hit_ratio(scores, targets)

    return measure


def expected_hit_ratio(scores: Floats, targets: Ints) -> float:
    """HitRatio@1, in expectation over the order of tied candidates.

    A row whose scores are not all finite is a miss, as in the stage `evaluate`.

    Args:
        scores: float64 [n, c]; higher is better.
        targets: int64 [n, 1], the target's column of each row.
    """
    own = np.take_along_axis(scores, targets, axis=1)
    first = (scores <= own).all(axis=1) & np.isfinite(scores).all(axis=1)
    # Of t tied ones at the top the target is the first with probability 1 / t.
    return float((first / np.maximum((scores == own).sum(axis=1), 1)).mean())


def validation_rows(run: Run, settings: AdapterSettings) -> EvaluatedRows:
    """Rows of validation, evenly spaced: `adapt.validate_rows` of them, or all if there are fewer.

    Raises:
        ValueError: No candidates were drawn, or there are fewer than two users.
    """
    config = EvaluateConfig(split="val", rows="all", min_history=settings.min_history, ks=[1])
    wanted = run.experiment.adapt.validate_rows
    split = run.data.split("val")
    users = np.unique(split.user_ids[split.history_lengths >= settings.min_history])
    if len(users) < 2:
        raise ValueError(
            f"adapters are measured on validation, where {len(users)} users have a history of "
            f"adapt.min_history={settings.min_history} items: lower it, or prepare more users"
        )
    found = evaluated_rows(run.data, config)
    if wanted >= len(found):
        return found
    return found.take(np.linspace(0, len(found) - 1, wanted).round().astype(np.int64))
