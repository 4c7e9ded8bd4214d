"""Expert weights of a few users, and how evenly a gate uses its experts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.scoring.arrays import Floats, Ints

SHOWN_USERS = 10
"""Users in the heat map (the paper shows ten sequences)."""


def gate_summary(weights: Floats, user_ids: Ints, rows: Ints, seed: int) -> Mapping[str, Any]:
    """What `gates.json` says of one method.

    Args:
        weights: float [n, K]; expert weights of n evaluated rows.
        user_ids: int64 [n].
        rows: int64 [n], ascending.
        seed: Training seed of the adapter.

    Returns:
        The first users' weights in their last evaluated row, the mean weight of each expert over
        all rows, and the mean entropy in nats (log K under a uniform gate, 0 when one expert
        takes all).
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
        "mean_entropy": float(-(weights * logs).sum(axis=1).mean()),
        "uniform_entropy": float(np.log(weights.shape[1])),
        "num_rows": len(rows),
    }
