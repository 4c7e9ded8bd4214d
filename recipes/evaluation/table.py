"""The table of predictions, with one line for each arm, seed, evaluated row and draw.

`better` and `tied` say where the target stands among the row's candidates (`Places`). `scores` are
in the order of the draw's candidates in `prepare/candidates.parquet`; they are not kept where all
items are ranked. The columns about generated text are null for methods that only score. `ambiguous`
rows are those whose target has the title of another candidate, as the language model writes it, so
that no answer is right there. `invalid` says why an answer is (`answers.py`), and is null for a
valid one. `lost` rows have a NaN among their scores: their target counts as the last candidate, and
their answer as invalid. `beam_items` are what the beams name, -1 for an invalid one, and
`beam_place` is the place of the target among them, from 0, or -1; both are null without beams.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from recipes.evaluation.answers import invalid_kind, parse_answer, parse_answer_by_substring
from recipes.evaluation.metrics import Places
from recipes.prompting.written import Written
from recipes.scoring.predictions import Predictions
from recipes.scoring.rows import EvaluatedRows

AnswerRule = Callable[[str, Sequence[str]], int | None]
NO_ITEM = -1
"""Stands for the predicted item of an invalid answer."""


def predictions_table(
    arm: str,
    seed: int,
    rows: EvaluatedRows,
    places: Places,
    titles: Sequence[str],
    found: Predictions | None = None,
) -> pd.DataFrame:
    """The table's lines for one arm and seed.

    Args:
        arm: Name of the arm, written to the column `method`.
        seed: Training seed of the arm.
        rows: The evaluated rows.
        places: Where each row's target stands.
        titles: Title of each item, by item id.
        found: The arm's predictions for these rows; None where all items are ranked.
    """
    count = len(rows.rows)
    table = pd.DataFrame(
        {
            "method": pd.array([arm] * count, dtype="str"),
            "seed": np.full(count, seed, dtype=np.int64),
            "split": pd.array([rows.split] * count, dtype="str"),
            "row": rows.rows,
            "draw": np.tile(np.arange(rows.draws), count // rows.draws),
            "user_id": rows.user_ids,
            "target": rows.targets,
            "output": pd.array([None] * count, dtype="str"),
            "predicted_item": pd.array([None] * count, dtype="Int64"),
            "valid": pd.array([None] * count, dtype="boolean"),
            "substring_item": pd.array([None] * count, dtype="Int64"),
            "invalid": pd.array([None] * count, dtype="str"),
            "ambiguous": pd.array([None] * count, dtype="boolean"),
            "beam_place": pd.array([None] * count, dtype="Int64"),
            "lost": np.zeros(count, dtype=bool) if places.lost is None else places.lost,
            "better": places.better,
            "tied": places.tied,
        }
    )
    if found is None:
        return table
    table["scores"] = list(np.asarray(found.scores, dtype=np.float64))
    if found.texts is not None:
        _add_answers(table, found.texts, found, rows, found.titles or titles)
    if found.beams is not None:
        _add_beams(table, found.beams, rows, found.titles or titles)
    return table


def _add_beams(
    table: pd.DataFrame,
    beams: Sequence[Sequence[str]],
    rows: EvaluatedRows,
    titles: Sequence[str],
) -> None:
    """Fill the columns about beams."""
    named, places = [], []
    triples = zip(beams, rows.candidates, rows.targets, table["lost"], strict=True)
    for texts, candidates, target, lost in triples:
        choices = [titles[int(item)] for item in candidates]
        indices = [parse_answer(text, choices) for text in texts]
        valid = [None if lost else one for one in indices]
        items = [NO_ITEM if one is None else int(candidates[one]) for one in valid]
        named.append(items)
        places.append(items.index(target) if target in items else NO_ITEM)
    table["beam_items"] = named
    table["beam_place"] = pd.array(places, dtype="Int64")


def _add_answers(
    table: pd.DataFrame,
    texts: Sequence[str],
    found: Predictions,
    rows: EvaluatedRows,
    titles: Sequence[str],
) -> None:
    """Fill the columns about generated text."""
    lost = table["lost"].to_numpy()
    items = np.array(_parsed(texts, rows, titles, parse_answer))
    items[lost] = NO_ITEM
    table["output"] = pd.array(texts, dtype="str")
    table["predicted_item"] = pd.array(items, dtype="Int64")
    table["valid"] = pd.array(items != NO_ITEM, dtype="boolean")
    table["invalid"] = pd.array(_kinds(texts, found, rows, titles, lost), dtype="str")
    by_substring = np.array(_parsed(texts, rows, titles, parse_answer_by_substring))
    by_substring[lost] = NO_ITEM
    table["substring_item"] = pd.array(by_substring, dtype="Int64")
    perfect = _parsed([str(titles[item]) for item in rows.targets], rows, titles, parse_answer)
    table["ambiguous"] = pd.array([item == NO_ITEM for item in perfect], dtype="boolean")


def _kinds(
    texts: Sequence[str],
    found: Predictions,
    rows: EvaluatedRows,
    titles: Sequence[str],
    lost: np.ndarray,
) -> list[str | None]:
    """Why each answer is invalid; None for a valid one."""
    cut = found.cut_short or [False] * len(texts)
    answers = map(Written, texts, cut)
    kinds = [
        invalid_kind(answer, [titles[int(item)] for item in candidates])
        for answer, candidates in zip(answers, rows.candidates, strict=True)
    ]
    return ["not finite" if one else kind for one, kind in zip(lost, kinds, strict=True)]


def _parsed(
    answers: Sequence[str], rows: EvaluatedRows, titles: Sequence[str], rule: AnswerRule
) -> list[int]:
    """The item id that each answer names under a rule; `NO_ITEM` if the answer is invalid."""
    items = []
    for answer, candidates in zip(answers, rows.candidates, strict=True):
        choices = [int(item) for item in candidates]
        index = rule(answer, [titles[item] for item in choices])
        items.append(NO_ITEM if index is None else choices[index])
    return items
