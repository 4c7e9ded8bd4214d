"""The long table of predictions: one line for each method, seed and evaluated row.

`scores` is aligned with the row's candidates in `prepare/candidates.parquet`. The columns about
generated text are null for methods that only score.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from recipes.evaluation.batching import prompt_lengths
from recipes.evaluation.generate import (
    generate_answers,
    parse_answer,
    parse_answer_by_substring,
)
from recipes.evaluation.metrics import Floats, rank_of_target
from recipes.evaluation.rank import score_candidates
from recipes.evaluation.rows import EvaluatedRows
from recipes.experiment import EvaluateConfig
from recipes.llm.adapted import AdaptedModel

AnswerRule = Callable[[str, Sequence[str]], int | None]
NO_ITEM = -1
"""Predicted item of an invalid answer."""


def scored_predictions(method: str, seed: int, rows: EvaluatedRows, scores: Floats) -> pd.DataFrame:
    """Predictions of a method that scores candidates (float [n, c]) and generates no text."""
    count = len(rows.rows)
    return pd.DataFrame(
        {
            "method": pd.array([method] * count, dtype="str"),
            "seed": np.full(count, seed, dtype=np.int64),
            "split": pd.array([rows.split] * count, dtype="str"),
            "row": rows.rows,
            "user_id": rows.user_ids,
            "target": rows.targets,
            "output": pd.array([None] * count, dtype="str"),
            "predicted_item": pd.array([None] * count, dtype="Int64"),
            "valid": pd.array([None] * count, dtype="boolean"),
            "substring_item": pd.array([None] * count, dtype="Int64"),
            "rank": rank_of_target(scores, rows.target_index),
            "scores": list(np.asarray(scores, dtype=np.float64)),
        }
    )


def llm_predictions(
    adapted: AdaptedModel,
    method: str,
    seed: int,
    rows: EvaluatedRows,
    titles: Sequence[str],
    config: EvaluateConfig,
) -> pd.DataFrame:
    """Predictions of an adapted LLM: a generated answer and the candidates' log-probabilities.

    Args:
        adapted: Model, tokenizer and prompts.
        method: Name of the method.
        seed: Its training seed.
        rows: n rows.
        titles: Titles by item id.
        config: Batch size and what else governs generation and ranking.
    """
    wanted, name = rows.rows.tolist(), f"{method} seed {seed}"
    lengths = prompt_lengths(adapted, rows.split, wanted, config.batch_size)
    scores = score_candidates(
        adapted,
        rows.split,
        wanted,
        lengths,
        rows.candidates,
        batch_size=config.batch_size,
        length_normalised=config.length_normalised,
        title=f"rank {name}",
    )
    answers = generate_answers(
        adapted,
        rows.split,
        wanted,
        lengths,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        title=f"generate {name}",
    )
    table = scored_predictions(method, seed, rows, scores)
    items = _parsed(answers, rows, titles, parse_answer)
    table["output"] = pd.array(answers, dtype="str")
    table["predicted_item"] = pd.array(items, dtype="Int64")
    table["valid"] = pd.array([item != NO_ITEM for item in items], dtype="boolean")
    by_substring = _parsed(answers, rows, titles, parse_answer_by_substring)
    table["substring_item"] = pd.array(by_substring, dtype="Int64")
    return table


def _parsed(
    answers: Sequence[str],
    rows: EvaluatedRows,
    titles: Sequence[str],
    rule: Callable[[str, Sequence[str]], int | None],
) -> list[int]:
    """Item id that each answer names by a rule, NO_ITEM where it is invalid."""
    items = []
    for answer, candidates in zip(answers, rows.candidates, strict=True):
        choices = [int(item) for item in candidates]
        index = rule(answer, [titles[item] for item in choices])
        items.append(NO_ITEM if index is None else choices[index])
    return items
