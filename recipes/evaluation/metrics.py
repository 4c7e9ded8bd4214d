"""Ranking and answer metrics for rows that each have exactly one relevant item.

Every metric is a ratio of two sums over rows. The functions here return one outcome for each row,
as the bootstrap needs it (`outcomes.py`). Ranks start at 1. On sampled candidates (the paper: 20 of
the catalogue) metrics need not agree with those of full rankings (Krichene and Rendle, 2020), so
`sampled_label` belongs beside every figure.
"""

import numpy as np
import numpy.typing as npt

from recipes.scoring.arrays import Floats, Ints


def rank_of_target(scores: npt.ArrayLike, target_index: npt.ArrayLike) -> Ints:
    """Rank of the target among a row's candidates; ties count against the method.

    Args:
        scores: float [n, c]; higher is better.
        target_index: int [n], the target's column in `scores`.

    Returns:
        int64 [n], 1 + the number of other candidates that score at least as high.

    Raises:
        ValueError: The shapes do not match, an index is out of range, or a score is NaN.
    """
    values = np.asarray(scores, dtype=np.float64)
    index = np.asarray(target_index, dtype=np.int64)
    if values.ndim != 2 or index.shape != values.shape[:1]:
        raise ValueError(
            f"scores must be [n, c] and target_index [n]; got {values.shape} and {index.shape}"
        )
    if np.isnan(values).any():
        raise ValueError("scores contains NaN, which has no rank: check the model that made it")
    if index.size and not (index.min() >= 0 and index.max() < values.shape[1]):
        raise ValueError(f"target_index must lie in [0, {values.shape[1]}), got {index}")
    target = np.take_along_axis(values, index[:, None], axis=1)
    return (values >= target).sum(axis=1, dtype=np.int64)


def hits(ranks: npt.ArrayLike, k: int) -> Floats:
    """Hit of each row: 1.0 if the target is among the best `k`, else 0.0; float64 [n]."""
    return (_checked(ranks, k) <= k).astype(np.float64)


def gains(ranks: npt.ArrayLike, k: int) -> Floats:
    """Discounted gain of each row, 1 / log2(1 + rank) within the best `k`, else 0; float64 [n].

    With one relevant item the ideal gain is 1, so this is the row's NDCG@k.
    """
    values = _checked(ranks, k)
    return np.where(values <= k, 1.0 / np.log2(1.0 + values), 0.0)


def random_hit_ratio(k: int, num_candidates: int) -> float:
    """Exact expectation of HitRatio@k for a uniformly random order."""
    return min(k, num_candidates) / num_candidates


def random_ndcg(k: int, num_candidates: int) -> float:
    """Exact expectation of NDCG@k for a uniformly random order."""
    places = np.arange(1, min(k, num_candidates) + 1)
    return float((1.0 / np.log2(1.0 + places)).sum() / num_candidates)


def sampled_label(num_candidates: int) -> str:
    """The words by which a label says that a figure was measured on sampled candidates."""
    return f"{num_candidates} sampled candidates"


def _checked(ranks: npt.ArrayLike, k: int) -> Floats:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    values = _some_rows(np.asarray(ranks, dtype=np.float64))
    if values.min() < 1:
        raise ValueError(f"ranks start at 1, got {values.min()}")
    return values


def _some_rows(values: Floats) -> Floats:
    if values.size == 0:
        raise ValueError("a metric of no rows is undefined: check split, rows and max_users")
    return values
