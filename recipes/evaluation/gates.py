"""Summarises a gate: expert weights of a few users, and how evenly it uses its experts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.scoring.arrays import Floats, Ints

SHOWN_USERS = 10
"""Number of users in the heat map (the paper shows ten sequences)."""


def gate_summary(weights: Floats, user_ids: Ints, rows: Ints, seed: int) -> Mapping[str, Any]:
    """The entry of one arm in `gates.json`.

    Args:
        weights: float [n, K], expert weights of n evaluated rows.
        user_ids: int64 [n], user id of each row.
        rows: int64 [n], ascending row numbers of the split.
        seed: Training seed of the adapter.

    Returns:
        The first users' weights in their last evaluated row, the mean weight of each expert over
        all rows, and the mean entropy in nats (log K for a uniform gate, 0 if one expert gets all
        the weight).
    """
    _, first, inverse = np.unique(user_ids, return_index=True, return_inverse=True)
    last = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(last, inverse, np.arange(len(rows)))
    shown = last[np.argsort(first)][:SHOWN_USERS]
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return {
        "seed": seed,
        "user_ids": user_ids[shown].tolist(),
        "rows": rows[shown].tolist(),
        "weights": weights[shown].tolist(),
        "mean_weights": weights.mean(axis=0).tolist(),
        "mean_entropy": float(abs((weights * logs).sum(axis=1).mean())),  # no -0.0
        "uniform_entropy": float(np.log(weights.shape[1])),
        "num_rows": len(rows),
    }
