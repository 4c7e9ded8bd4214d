"""Scores of a method that only answers: the candidate it names stands first."""

import numpy as np

from recipes.evaluation.answers import parse_answer
from recipes.scoring.arrays import Floats
from recipes.scoring.predictions import Predictions
from recipes.scoring.rows import EvaluatedRows


def named_scores(found: Predictions, rows: EvaluatedRows) -> Floats:
    """1 for the candidate that a row's answer names, and 0 for the others: float64 [n, c].

    So all others are tied, and after an invalid answer all candidates are.
    """
    assert found.texts is not None and found.titles is not None
    scores = np.zeros(rows.candidates.shape)
    for line, text, items in zip(scores, found.texts, rows.candidates.tolist(), strict=True):
        index = parse_answer(text, [found.titles[int(item)] for item in items])
        if index is not None:
            line[index] = 1.0
    return scores
