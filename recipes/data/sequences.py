"""Interactions -> examples: every sliding window (history, target) of every user.

A window belongs to the split of its target; its history is what precedes the target in the user's
whole sequence, in whatever splits.

A user with n interactions gives n windows. Each interaction is the target of one, and the items
before it are the history, which is empty in the first window. These are LLaRA's windows. LLaRA
trains on those with a history of at least 3 items; its validation and test files hold only each
user's last window (`is_last`). Windows of one user are not independent, so intervals over all
windows must be clustered by user.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from recipes.data.padding import PADDING, padded, ranges
from recipes.data.splits import SPLITS
from recipes.datasets.dataset import ReadyWindows
from recipes.datasets.ordering import places, run_starts


@dataclass(frozen=True)
class Windows:
    """All windows of a dataset: row i's target is interaction i, its history the items before it.

    Histories are cut on demand, because together they are up to `max_history` times as large as
    the interactions.
    """

    targets: np.ndarray
    """int64 [n], item ids."""

    lengths: np.ndarray
    """int64 [n], number of items in each history."""

    max_history: int
    """Maximum number of items in a history."""

    table: pd.DataFrame
    """n rows with the columns split (categories `SPLITS`; null for a window that is left out), row
    (from 0 within the split), user_id and is_last (the user's last window of the split)."""

    @property
    def splits(self) -> np.ndarray:
        """Each row's split, as an index into `SPLITS`, -1 for one that is left out: int8 [n]."""
        return self.table["split"].cat.codes.to_numpy()

    def cut(self, rows: np.ndarray) -> np.ndarray:
        """The histories of some rows: integers [n] -> int64 [n, max_history], padded with -1."""
        # The column `back` from the right: within one user, the target of row i - back.
        back = np.arange(self.max_history, 0, -1)
        before = rows[:, None] - back
        histories = self.targets.take(before, mode="clip")
        histories[self.lengths[rows, None] < back] = PADDING
        return histories

    def items(self, rows: slice) -> np.ndarray:
        """The histories of a slice of rows, without padding, one after the other: int64."""
        at = np.arange(rows.start, rows.stop)
        # The j-th item of row i's history is the target of row i - length + j.
        return self.targets[ranges(at - self.lengths[rows], at)]

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """All items that the users of some rows ever meet: int64 [m, width], left-padded with -1.

        Args:
            rows: Integers [m], row numbers.
        """
        starts, ends = (bounds[rows] for bounds in self._users)
        lengths = ends - starts
        return padded(self.targets[ranges(starts, ends)], lengths, int(lengths.max(initial=0)))

    @cached_property
    def _users(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows of each row's user begin, and where they end: int64 [n] each."""
        starts = run_starts(self.table["user_id"].to_numpy())
        counts = np.diff(starts, append=len(self.targets))
        return np.repeat(starts, counts), np.repeat(starts + counts, counts)


@dataclass(frozen=True)
class GivenWindows(Windows):
    """Windows whose histories came with the data; they are already cut to `max_history`."""

    histories: np.ndarray
    """int64 [n, max_history], left-padded with -1."""

    def cut(self, rows: np.ndarray) -> np.ndarray:
        return self.histories[rows]

    def items(self, rows: slice) -> np.ndarray:
        histories = self.histories[rows]
        return histories[histories != PADDING]

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """Refused, as windows need not tell all that a user meets (ValueError)."""
        raise ValueError(
            "prepare.negatives='whole': this dataset gives windows, which do not tell all that a "
            "user meets: choose prepare.negatives=visible or catalogue"
        )


def given_windows(ready: ReadyWindows, max_history: int) -> GivenWindows:
    """Take over windows that the dataset has cut; histories keep their newest `max_history` items.

    Raises:
        ValueError: A split has a name that is not in `SPLITS`, or no windows, or an item id is out
            of range.
    """
    check_max_history(max_history)
    unknown = sorted(set(ready.table["split"]) - set(SPLITS))
    if unknown:
        raise ValueError(f"windows of split {unknown[0]!r}: name splits {', '.join(SPLITS)}")
    empty = [name for name in SPLITS if name not in set(ready.table["split"])]
    if empty:
        raise ValueError(f"no windows of split {empty[0]}: every split needs some")
    # Bring the rows of a split together; within a split they keep their order.
    split = pd.Categorical(ready.table["split"], categories=list(SPLITS))
    order = np.asarray(split.codes).argsort(kind="stable")
    table = ready.table.take(order)
    lists = [np.asarray(items, np.int64)[-max_history:] for items in table["history"]]
    items = np.concatenate([np.empty(0, np.int64), *lists])
    lengths = np.fromiter(map(len, lists), np.int64)
    targets = table["target"].to_numpy(np.int64)
    for ids in (items, targets):
        if ids.size and not 0 <= ids.min() <= ids.max() < len(ready.titles):
            raise ValueError(
                f"windows hold item ids from {ids.min()} to {ids.max()}, but there are "
                f"{len(ready.titles)} titles, for the ids from 0"
            )
    columns = {
        "split": split.take(order),
        "user_id": table["user_id"].to_numpy(np.int64),
        "row": _rows(np.asarray(split.codes)[order]),
        "is_last": table["is_last"].to_numpy(np.bool_),
    }
    histories = padded(items, lengths, max_history)
    return GivenWindows(targets, lengths, max_history, pd.DataFrame(columns), histories)


def check_max_history(max_history: int) -> None:
    """Refuse a maximum history length below 1 (ValueError)."""
    if max_history < 1:
        raise ValueError(f"prepare.max_history={max_history}: choose 1 or more")


def sliding_windows(
    interactions: pd.DataFrame, max_history: int, left_out: np.ndarray | None = None
) -> Windows:
    """Cut all windows of all users.

    Args:
        interactions: Columns user_id, item_id, position, split. A user's rows are adjacent and in
            order of position, as `in_order` leaves them.
        max_history: Maximum number of items in a history; the newest are kept.
        left_out: bool [n], interactions that are the target of no window, though they stand in the
            histories of others; None stands for none.

    Raises:
        ValueError: `max_history` is below 1, or a user's positions are not 0, 1, 2, .. in order.
    """
    check_max_history(max_history)
    items = interactions["item_id"].to_numpy(np.int64)
    users = interactions["user_id"].to_numpy(np.int64)
    positions = interactions["position"].to_numpy(np.int64)
    starts = run_starts(users)
    _check_order(users, positions, starts)
    codes = pd.Categorical(interactions["split"], categories=list(SPLITS)).codes
    codes = np.where(left_out, np.int8(-1), codes) if left_out is not None else codes
    columns = {
        "split": pd.Categorical.from_codes(codes, list(SPLITS)),
        "user_id": users,
        "row": _rows(codes),
        "is_last": _ends(users, codes),
    }
    table = pd.DataFrame(columns, copy=False)
    return Windows(items, np.minimum(positions, max_history), max_history, table)


def _rows(codes: np.ndarray) -> np.ndarray:
    """Each row's index within its split, from 0, or -1 without a split: int64 [n]."""
    rows = np.full(len(codes), -1, np.int64)
    for code in range(len(SPLITS)):
        own = codes == code
        rows[own] = np.arange(np.count_nonzero(own))
    return rows


def _ends(users: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Whether each row is the last one of its user in its split: bool [n]."""
    used = np.flatnonzero(codes >= 0)
    starts = run_starts(users[used], codes[used])
    found = np.zeros(len(users), np.bool_)
    found[used[np.append(starts[1:], len(used))[: len(starts)] - 1]] = True
    return found


def _check_order(users: np.ndarray, positions: np.ndarray, starts: np.ndarray) -> None:
    """Check that a user's rows are adjacent, with positions 0, 1, 2, .. (ValueError)."""
    expected = places(starts, len(users))
    if not np.array_equal(positions, expected) or len(starts) != len(np.unique(users[starts])):
        raise ValueError(
            "interactions: rows of a user must be adjacent, with positions 0, 1, 2, .."
        )
