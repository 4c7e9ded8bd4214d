"""Users -> train, validation and test, 8:1:1 by first timestamp; no user is in two splits.

This is LLaRA's split. It is a split of users, not of time: users who start late also end late, but
a train user's later items may follow a test user's first ones.
"""

from typing import Literal

import numpy as np
import pandas as pd

from recipes.datasets.ordering import order_by

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
MIN_USERS = 6
"""The least n from which on `int(0.8 n)` < `int(0.9 n)` < n, so that no split is empty."""


def assign_splits(interactions: pd.DataFrame, ranking: np.ndarray | None = None) -> pd.DataFrame:
    """Rank users by their first timestamp, split them, and sort the interactions by rank.

    Args:
        interactions: Columns user_id, position, timestamp and any others; rows in any order.
        ranking: A timestamp for each row; users are ranked by their earliest one. None stands for
            the column `timestamp`. Ties keep the order of the users' first rows. Users without any
            timestamp come last, in the order of their first rows too.

    Returns:
        A copy with the column `split` (categories `SPLITS`), sorted by the user's rank, then by
        position.

    Raises:
        ValueError: There are fewer than `MIN_USERS` users.
    """
    owners, users = pd.factorize(interactions["user_id"].to_numpy())
    if len(users) < MIN_USERS:
        raise ValueError(f"{len(users)} users cannot be split 8:1:1; give at least {MIN_USERS}")
    if ranking is None:
        ranking = interactions["timestamp"].to_numpy(np.float64, na_value=np.inf)
    ranking = ranking.astype(np.float64, copy=False)
    first = np.full(len(users), np.inf)
    np.minimum.at(first, owners, ranking)
    rank = np.empty(len(users), np.int64)
    rank[first.argsort(kind="stable")] = np.arange(len(users))
    bounds = [int(0.8 * len(users)), int(0.9 * len(users))]
    ranks = rank[owners]
    del owners, first
    order = order_by(ranks, interactions["position"].to_numpy())
    codes = np.searchsorted(bounds, ranks[order], side="right").astype(np.int8)
    ordered = {name: column.take(order).array for name, column in interactions.items()}
    ordered["split"] = pd.Categorical.from_codes(codes, list(SPLITS))
    return pd.DataFrame(ordered, copy=False)
