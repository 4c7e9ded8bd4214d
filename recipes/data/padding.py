"""Histories of unequal length -> one left-padded matrix; the newest item is in the last column."""

from collections.abc import Sequence

import numpy as np

PADDING = -1
"""Fills the columns before a history's oldest item; no item has this id."""


def padded(values: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Turn concatenated lists of item ids into one matrix.

    Args:
        values: int64 [sum of lengths], the n lists one after the other.
        lengths: int64 [n], at most `width` each.
        width: Number of columns of the matrix.

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


def ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The numbers from each start to its end, exclusive, one range after the other: int64."""
    lengths = ends - starts
    before = lengths.cumsum() - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def to_padded(lists: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Turn n separate lists of item ids into one matrix: int64 [n, width], left-padded with -1."""
    lengths = np.fromiter(map(len, lists), np.int64)
    return padded(np.concatenate([np.empty(0, np.int64), *lists]), lengths, width)
