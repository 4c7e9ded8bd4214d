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

from recipes.data.ordering import places, run_starts
from recipes.data.ragged import PADDING, to_lists
from recipes.data.splits import SPLITS


@dataclass(frozen=True)
class Windows:
    """All windows of a dataset; row i's target is interaction i.

    Histories are cut when they are asked for: together they are `max_history` times as large as
    the interactions.
    """

    targets: np.ndarray
    """int64 [n]."""

    lengths: np.ndarray
    """int64 [n]: items of each history."""

    max_history: int
    """Items of a history at most."""

    table: pd.DataFrame
    """Columns split (categories `SPLITS`), row (from 0 within the split), user_id, is_last; n rows.
    """

    @property
    def splits(self) -> np.ndarray:
        """Each row's split as its place in `SPLITS`: int8 [n]."""
        return self.table["split"].cat.codes.to_numpy()

    @property
    def histories(self) -> np.ndarray:
        """Every history: int64 [n, max_history], oldest first, left-padded with -1."""
        return self.cut(0, len(self.targets))

    def cut(self, start: int, stop: int) -> np.ndarray:
        """The histories of rows start .. stop-1, as in `histories`."""
        histories = np.full((stop - start, self.max_history), PADDING, np.int64)
        for back in range(1, self.max_history + 1):
            # Row i's item of `back` steps ago is row i - back's target, if the user is the same.
            first = max(start, back)
            seen = self.lengths[first:stop] >= back
            items = self.targets[first - back : stop - back]
            histories[first - start :, -back][seen] = items[seen]
        return histories

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
    starts = run_starts(users)
    _check_order(users, positions, starts)
    split = pd.Categorical(interactions["split"], categories=list(SPLITS))
    is_last = np.zeros(len(users), np.bool_)
    is_last[np.append(starts[1:], len(users)) - 1] = True
    columns = {
        "split": split,
        "user_id": users,
        "row": _rows(np.asarray(split.codes)),
        "is_last": is_last,
    }
    table = pd.DataFrame(columns, copy=False)
    return Windows(items, np.minimum(positions, max_history), max_history, table)


def _rows(codes: np.ndarray) -> np.ndarray:
    """The number of each row within its split: int64 [n]."""
    rows = np.empty(len(codes), np.int64)
    for code in range(len(SPLITS)):
        own = codes == code
        rows[own] = np.arange(np.count_nonzero(own))
    return rows


def _check_order(users: np.ndarray, positions: np.ndarray, starts: np.ndarray) -> None:
    """Positions restart at 0 with every user and otherwise grow by 1; no user appears twice."""
    expected = places(starts, len(users))
    if not np.array_equal(positions, expected) or len(starts) != len(np.unique(users[starts])):
        raise ValueError(
            "interactions: rows of a user must be adjacent, with positions 0, 1, 2, .."
        )
