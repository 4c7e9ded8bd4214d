"""Ranks targets among all items of the catalogue."""

import numpy as np

from recipes.evaluation.metrics import Places, places_or_last
from recipes.experiment import EvaluateConfig
from recipes.scoring.arrays import Ints
from recipes.scoring.masking import Masked
from recipes.scoring.predictions import Scorer
from recipes.scoring.rows import EvaluatedRows

SCORES = 2**22
"""Scores held at once, so that memory does not grow with the number of rows."""


def catalogue_places(
    scorer: Scorer, rows: EvaluatedRows, masked: Masked, config: EvaluateConfig
) -> Places:
    """Place of each row's target among all items.

    Args:
        scorer: Scores the candidates of some rows.
        rows: The n rows, whose candidates are all items.
        masked: The pairs of row and item to which `config.mask` applies.
        config: `mask` leaves these items out (`history`) or scores them 0 (`zero`).

    Returns:
        The places; a row with a NaN is lost.
    """
    found, step = [], max(1, SCORES // rows.num_candidates)
    for start in range(0, len(rows), step):
        chunk = rows.chunk(start, start + step)
        scores, here = scorer(chunk), masked.of(start, start + len(chunk))
        left_out = None
        if config.mask == "zero":
            scores[here.rows, here.items] = 0
        elif config.mask == "history":
            left_out = np.zeros(scores.shape, dtype=bool)
            left_out[here.rows, here.items] = True
        found.append(places_or_last(scores, chunk.target_index, left_out))
    parts = zip(*((one.better, one.tied, one.lost) for one in found), strict=True)
    return Places(*map(np.concatenate, parts))


def ranked_counts(rows: EvaluatedRows, masked: Masked, config: EvaluateConfig) -> Ints:
    """Number of candidates that each row's target is ranked among, itself included: int64 [n]."""
    counts = np.full(len(rows), rows.num_candidates, dtype=np.int64)
    return counts - masked.counts(len(rows)) if config.mask == "history" else counts
