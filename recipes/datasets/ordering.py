"""Sorting and grouping of integers in linear time."""

import numpy as np

DIGIT = 16
"""Bits sorted in one pass; numpy sorts 16-bit integers with radix sort."""


def order_by(*keys: np.ndarray) -> np.ndarray:
    """Indices that sort rows by the first key, then by the second and so on; a stable sort.

    Args:
        keys: Integer arrays [n].

    Returns:
        int64 [n], equal to `np.lexsort(keys[::-1])`.
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
    """Index at which each run of equal keys begins: int64, ascending."""
    new = np.ones(len(keys[0]), np.bool_)
    if len(new):
        new[1:] = False
        for key in keys:
            new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)


def places(starts: np.ndarray, count: int) -> np.ndarray:
    """Each row's index within its run, from 0: int64 [count]. `starts` is that of `run_starts`."""
    return np.arange(count) - np.repeat(starts, np.diff(starts, append=count))


def positions(users: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Each row's place among the rows of its user, from 0: int64 [n].

    Args:
        users: int64 [n], each row's user.
        order: int64 [n], the rows user by user, each user's in order.
    """
    found = np.empty(len(users), np.int64)
    found[order] = places(run_starts(users[order]), len(users))
    return found


def _is_sorted(keys: tuple[np.ndarray, ...]) -> bool:
    tied = np.ones(max(len(keys[0]) - 1, 0), np.bool_)
    for key in keys:
        if (tied & (key[1:] < key[:-1])).any():
            return False
        tied &= key[1:] == key[:-1]
    return True
