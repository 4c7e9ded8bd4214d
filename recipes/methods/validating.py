"""How well an adapter ranks validation rows while it is trained (`adapt.validate_at`)."""

import numpy as np

from recipes.experiment import AdaptConfig, AdapterSettings, EvaluateConfig
from recipes.llm.adapted import AdaptedModel
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.validation import Measure
from recipes.recommenders.vectors import Vectors
from recipes.run import Run
from recipes.scoring.rank import score_candidates
from recipes.scoring.rows import EvaluatedRows, evaluated_rows


def check_validation(owner: str, config: AdaptConfig, settings: AdapterSettings) -> None:
    """Refuse measurements that would never be made, or not of the model that is trained.

    Args:
        owner: Names the arm's method in messages, such as `method lora`.
        config: The section `adapt`.
        settings: The arm's settings.

    Raises:
        ValueError: The message names the setting and the remedy.
    """
    steps = config.validate_at
    late = [step for step in steps if step > settings.max_steps]
    if late:
        raise ValueError(
            f"{owner}: adapt.validate_at names step {late[0]}, but the training ends at "
            f"adapt.max_steps={settings.max_steps}: leave it out"
        )
    if steps and settings.frozen_prefix:
        raise ValueError(
            f"{owner}: adapt.validate_at={steps} reads whole prompts, and adapt.frozen_prefix "
            "trains without the layers below: leave one out"
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
        own = np.take_along_axis(scores, targets, axis=1)
        first = (scores <= own).all(axis=1)
        # Of t tied ones at the top the target is the first with probability 1 / t.
        return float((first / (scores == own).sum(axis=1)).mean())

    return measure


def validation_rows(run: Run, settings: AdapterSettings) -> EvaluatedRows:
    """Rows of validation, evenly spaced: `adapt.validate_rows` of them, or all if there are fewer.

    Raises:
        ValueError: No candidates were drawn, or there are fewer than two users.
    """
    config = EvaluateConfig(split="val", rows="all", min_history=settings.min_history, ks=[1])
    found, wanted = evaluated_rows(run.data, config), run.experiment.adapt.validate_rows
    if wanted >= len(found):
        return found
    return found.take(np.linspace(0, len(found) - 1, wanted).round().astype(np.int64))
