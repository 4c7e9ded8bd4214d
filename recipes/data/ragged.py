"""Lists of item ids of unequal length <-> one left-padded matrix (the newest item comes last)."""

from collections.abc import Sequence

import numpy as np

PADDING = -1
"""Fills a history's missing older items; no item has this id."""


def to_lists(padded: np.ndarray) -> list[np.ndarray]:
    """int64 [n, width], left-padded with -1 -> n arrays without the padding."""
    present = padded != PADDING
    ends = present.sum(axis=1).cumsum()
    return np.split(padded[present], ends)[:-1]


def to_padded(lists: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Lists of at most `width` ids, n of them -> int64 [n, width], left-padded with -1.

    Raises:
        ValueError: A list is longer than `width`.
    """
    lengths = np.fromiter(map(len, lists), np.int64)
    if lengths.max(initial=0) > width:
        raise ValueError(f"a history of {lengths.max()} items does not fit max_history={width}")
    padded = np.full((len(lists), width), PADDING, np.int64)
    present = np.arange(width) >= width - lengths[:, None]
    padded[present] = np.concatenate([np.empty(0, np.int64), *lists])
    return padded
