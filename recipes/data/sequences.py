"""Interactions -> examples: every sliding window (history, target) of every user.

A user with n interactions gives n windows: one for each interaction as target, with the items
before it as history, the first window's history being empty. Those are LLaRA's windows; it trains
on the ones with a history of at least 3, and its validation and test files hold each user's last
window only (`is_last`). Windows of one user are not independent: intervals over all windows must be
clustered by user.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recipes.data.ragged import PADDING, to_lists


@dataclass(frozen=True)
class Windows:
    """All windows of a dataset; row i's target is interaction i."""

    histories: np.ndarray
    """int64 [n, max_history], oldest first, left-padded with -1."""

    targets: np.ndarray
    """int64 [n]."""

    table: pd.DataFrame
    """Columns split, row (from 0 within the split), user_id, is_last; n rows."""

    def examples(self) -> pd.DataFrame:
        """The table to be written: split, row, user_id, history, target, is_last."""
        history = pd.Series(to_lists(self.histories), dtype=object)
        table = self.table.assign(history=history, target=self.targets)
        columns = ["split", "row", "user_id", "history", "target", "is_last"]
        return pd.DataFrame(table, columns=columns)


def sliding_windows(interactions: pd.DataFrame, max_history: int) -> Windows:
    """Cut every window.

    Args:
        interactions: Columns user_id, item_id, position, split; each user's rows together, in
            order of position, as `assign_splits` leaves them.
        max_history: Items of a history at most; the newest are kept.

    Raises:
        ValueError: `max_history` is below 1, or a user's positions are not 0, 1, 2, .. in order.
    """
    if max_history < 1:
        raise ValueError(f"max_history={max_history}: choose 1 or more")
    items = interactions["item_id"].to_numpy(np.int64)
    users = interactions["user_id"].to_numpy(np.int64)
    positions = interactions["position"].to_numpy(np.int64)
    _check_order(users, positions)

    back = np.arange(-max_history, 0)
    source = np.arange(len(items))[:, None] + back
    seen = -back <= positions[:, None]
    histories = np.where(seen, items[np.maximum(source, 0)], PADDING)

    table = pd.DataFrame({"split": interactions["split"].to_numpy(), "user_id": users})
    table["row"] = table.groupby("split").cumcount()
    table["is_last"] = np.append(users[1:] != users[:-1], True)
    return Windows(histories, items, table)


def _check_order(users: np.ndarray, positions: np.ndarray) -> None:
    """Positions restart at 0 with every user and otherwise grow by 1; no user appears twice."""
    starts = np.append(True, users[1:] != users[:-1])
    expected = np.append(0, positions[:-1] + 1)
    expected[starts] = 0
    if not np.array_equal(positions, expected) or starts.sum() != len(np.unique(users)):
        raise ValueError(
            "interactions: rows of a user must be adjacent, with positions 0, 1, 2, .."
        )
