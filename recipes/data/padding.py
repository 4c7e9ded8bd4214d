"""Lists of item ids of unequal length -> one left-padded matrix (the newest item comes last)."""

from collections.abc import Sequence

import numpy as np

PADDING = -1
"""Fills a history's missing older items; no item has this id."""


def padded(values: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Lists of at most `width` ids that lie behind each other -> one matrix.

    Args:
        values: int64 [sum of lengths], one list after the other.
        lengths: int64 [n].
        width: Of the result.

    Returns:
        int64 [n, width], left-padded with -1.

    Raises:
        ValueError: A list is longer than `width`.
    """
    if lengths.max(initial=0) > width:
        raise ValueError(f"a history of {lengths.max()} items does not fit max_history={width}")
    matrix = np.full((len(lengths), width), PADDING, np.int64)
    matrix[np.arange(width) >= width - lengths[:, None]] = values
    return matrix


def to_padded(lists: Sequence[np.ndarray], width: int) -> np.ndarray:
    """The same of n lists: int64 [n, width]."""
    lengths = np.fromiter(map(len, lists), np.int64)
    return padded(np.concatenate([np.empty(0, np.int64), *lists]), lengths, width)
