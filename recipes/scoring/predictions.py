"""A method's predictions for the evaluated rows: scores of candidates, and answers if it writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.experiment import EvaluateConfig
from recipes.llm.prompted import PromptedModel
from recipes.prompting.written import written_titles
from recipes.scoring.arrays import Floats, Ints
from recipes.scoring.generate import Decoding, Generated, generate_answers, generated_tokens
from recipes.scoring.masking import Masked
from recipes.scoring.modulation import modulation_summary
from recipes.scoring.order import OrderChanges, order_changes
from recipes.scoring.rank import score_candidates
from recipes.scoring.rows import EvaluatedRows
from recipes.scoring.trie import Node, trie, without

Scorer = Callable[[EvaluatedRows], Floats]
"""Scores of the candidates of some rows, float64 or float32 [n, c], in an array of their own."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for n rows."""

    scores: Floats | None
    """float64 [n, c], in the order of each row's candidates; higher is better. A row that the model
    gave no finite scores is NaN. None for a method that only answers."""
    texts: Sequence[str] | None = None
    """n generated answers; None for a method that only scores."""
    cut_short: Sequence[bool] | None = None
    """Whether the limit of tokens ended each answer; None stands for none of them."""
    gates: Tensor | None = None
    """float32 [n, K], expert weights; None for a method without a gate."""
    modulations: Sequence[Mapping[str, Any]] = ()
    """Figures of a gate without experts, see `modulation_summary`."""
    titles: Sequence[str] | None = None
    """Each item's title as the language model writes it, with which `texts` are compared."""
    beams: Sequence[Sequence[str]] | None = None
    """The answers of each row's beams, the likeliest first; None without beams."""
    order: OrderChanges | None = None
    """What the order of the listed candidates changed; None if it was not tried."""


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
        ValueError: No row has finite scores, or nothing is left of a title once it is tokenised.
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
    lost = ~np.isfinite(scores).all(axis=1)
    if lost.all():
        raise ValueError(
            f"{label}: no row's scores are finite, so its adapter has diverged: lower "
            "adapt.learning_rate and train it again"
        )
    scores[lost] = np.nan
    found = Predictions(
        scores,
        gates=gate_weights(adapted, rows, config.batch_size),
        modulations=modulation_summary(adapted, rows, config.batch_size),
        order=order_changes(adapted, label, rows, scores, config),
    )
    if config.decoding == "none":
        return found
    answers = _answers(adapted, label, rows, lengths, config)
    return replace(
        found,
        texts=answers.texts,
        cut_short=answers.cut_short,
        titles=titles,
        beams=answers.beams if config.num_beams > 1 else None,
    )


def _answers(
    adapted: PromptedModel, label: str, rows: EvaluatedRows, lengths: Ints, config: EvaluateConfig
) -> Generated:
    """What the model writes; `lengths` are those of the prompts."""
    allowed = (
        [[adapted.answer_ids[item] for item in items] for items in rows.candidates]
        if config.decoding == "candidates"
        else None
    )
    return generate_answers(
        adapted,
        rows.split,
        rows.rows.tolist(),
        lengths,
        batch_size=config.batch_size,
        decoding=decoding_of(adapted, config),
        title=f"generate {label}",
        allowed=allowed,
    )


def decoding_of(adapted: PromptedModel, config: EvaluateConfig) -> Decoding:
    """How answers are generated; the limit of tokens is what the longest title takes."""
    return Decoding(
        max_new_tokens=config.max_new_tokens or max(map(len, adapted.answer_ids)),
        num_beams=config.num_beams,
        length_normalised=config.length_normalised,
    )


def beam_scores(
    adapted: PromptedModel,
    label: str,
    rows: EvaluatedRows,
    masked: Masked,
    config: EvaluateConfig,
) -> Floats:
    """Scores of all items by a language model whose prompts list none: float64 [n, items].

    The model writes titles by beams. The item of the likeliest beam scores `num_beams`, that of the
    next one less, and all others 0, in no order. Items of equal tokens score alike.

    Args:
        adapted: Model, tokenizer and prompts.
        label: Label of the progress bar.
        rows: The n rows, whose candidates are all items.
        masked: What no beam may write: pairs of a row and an item. An item stays if another one
            that is not masked has the same tokens.
        config: Settings of generation.
    """
    items: dict[tuple[int, ...], list[int]] = {}
    for item, ids in enumerate(adapted.answer_ids):
        items.setdefault(tuple(ids), []).append(item)
    whole = trie(adapted.answer_ids)

    def allowed(position: int) -> Node:
        hidden = set(masked.of(position, position + 1).items.tolist())
        answers = {tuple(adapted.answer_ids[item]) for item in hidden}
        return without(whole, [ids for ids in answers if hidden.issuperset(items[ids])])

    lengths = adapted.prompt_lengths(rows.split, rows.rows.tolist())
    beams = generated_tokens(
        adapted,
        rows.split,
        rows.rows.tolist(),
        lengths,
        batch_size=config.batch_size,
        decoding=decoding_of(adapted, config),
        title=f"generate {label}",
        roots=allowed,
    )
    scores = np.zeros((len(rows), len(adapted.answer_ids)))
    for row, answers in enumerate(beams):
        for place, ids in enumerate(answers):
            scores[row, items.get(tuple(ids), [])] = config.num_beams - place
    return scores


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
