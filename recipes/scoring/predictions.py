"""A method's predictions for the evaluated rows: scores of candidates, and answers if it writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.experiment import EvaluateConfig
from recipes.llm.prompted import PromptedModel
from recipes.prompting.written import written_titles
from recipes.scoring.arrays import Floats
from recipes.scoring.generate import generate_answers
from recipes.scoring.modulation import modulation_summary
from recipes.scoring.rank import score_candidates
from recipes.scoring.rows import EvaluatedRows

Scorer = Callable[[EvaluatedRows], Floats]
"""Scores of the candidates of some rows, float64 or float32 [n, c], in an array of their own."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for n rows."""

    scores: Floats | None
    """float64 [n, c], in the order of each row's candidates; higher is better. None for a method
    that only answers."""
    texts: Sequence[str] | None = None
    """n generated answers; None for a method that only scores."""
    gates: Tensor | None = None
    """float32 [n, K], expert weights; None for a method without a gate."""
    modulations: Sequence[Mapping[str, Any]] = ()
    """Figures of a gate without experts, see `modulation_summary`."""
    titles: Sequence[str] | None = None
    """Each item's title as the language model writes it, with which `texts` are compared."""


def llm_predictions(
    adapted: PromptedModel, label: str, rows: EvaluatedRows, config: EvaluateConfig
) -> Predictions:
    """The candidates' log-probabilities, a generated answer and any gate weights for each row.

    Args:
        adapted: Model, tokenizer and prompts.
        label: Label of progress bars, such as `ilora seed 0`.
        rows: The evaluated rows.
        config: Batch size, and settings of generation and ranking.

    Raises:
        ValueError: A score is not finite, or nothing is left of a title once it is tokenised.
    """
    titles = written_titles(adapted.tokenizer, adapted.answer_ids, adapted.answer_end)
    wanted = rows.rows.tolist()
    lengths = adapted.prompt_lengths(rows.split, wanted)
    scores = score_candidates(
        adapted,
        rows.split,
        wanted,
        lengths,
        rows.candidates,
        batch_size=config.batch_size,
        length_normalised=config.length_normalised,
        title=f"rank {label}",
    )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{label}: a candidate's score is not finite, so its adapter has diverged: lower "
            "adapt.learning_rate and train it again"
        )
    allowed = (
        [[adapted.answer_ids[item] for item in items] for items in rows.candidates]
        if config.decoding == "candidates"
        else None
    )
    texts = generate_answers(
        adapted,
        rows.split,
        wanted,
        lengths,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens or max(map(len, adapted.answer_ids)),
        title=f"generate {label}",
        allowed=allowed,
    )
    gates = gate_weights(adapted, rows, config.batch_size)
    modulations = modulation_summary(adapted, rows, config.batch_size)
    return Predictions(scores, texts, gates, modulations, titles)


@torch.inference_mode()
def gate_weights(adapted: PromptedModel, rows: EvaluatedRows, batch_size: int) -> Tensor | None:
    """Expert weights of every row, float32 [n, K]; None for a method without a gate."""
    found = []
    for batch in np.array_split(rows.rows, range(batch_size, len(rows.rows), batch_size)):
        weights = adapted.gate_weights(rows.split, batch.tolist())
        if weights is None:
            return None
        found.append(weights.float().cpu())
    return torch.cat(found)
