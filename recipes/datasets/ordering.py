"""Sorting and grouping of whole numbers in time linear in their count."""

import numpy as np

DIGIT = 16
"""Bits sorted by in one pass: numpy sorts 16-bit numbers by radix."""


def order_by(*keys: np.ndarray) -> np.ndarray:
    """The stable order by the first key, then the second and so on.

    Args:
        keys: Integers [n] each.

    Returns:
        int64 [n], as `np.lexsort(keys[::-1])`.
    """
    if _is_sorted(keys):
        return np.arange(len(keys[0]))
    order: np.ndarray | None = None
    for key in reversed(keys):
        lowest, highest = int(key.min()), int(key.max())
        for shift in range(0, (highest - lowest).bit_length(), DIGIT):
            digits = key if order is None else key[order]
            digits = ((digits - lowest) >> shift).astype(np.uint16)
            step = digits.argsort(kind="stable")
            order = step if order is None else order[step]
    return np.arange(len(keys[0])) if order is None else order


def run_starts(*keys: np.ndarray) -> np.ndarray:
    """Where each run of equal keys begins: int64, ascending."""
    new = np.ones(len(keys[0]), np.bool_)
    if len(new):
        new[1:] = False
        for key in keys:
            new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)


def places(starts: np.ndarray, count: int) -> np.ndarray:
    """The place within its run, from 0, of each of `count` rows: int64 [count]."""
    return np.arange(count) - np.repeat(starts, np.diff(starts, append=count))


def _is_sorted(keys: tuple[np.ndarray, ...]) -> bool:
    tied = np.ones(max(len(keys[0]) - 1, 0), np.bool_)
    for key in keys:
        if (tied & (key[1:] < key[:-1])).any():
            return False
        tied &= key[1:] == key[:-1]
    return True
