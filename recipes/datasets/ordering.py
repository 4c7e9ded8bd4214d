"""Sorting and grouping of integers."""

from collections.abc import Iterator, Sequence

import numpy as np

WORD = 64
"""Bits of the integers that are sorted: a part of the keys, and below it the row's number."""


def order_by(*keys: np.ndarray) -> np.ndarray:
    """Indices that sort rows by the first key, then by the second and so on; a stable sort.

    The keys' bits and the row's number are packed into one integer and these are sorted, which
    numpy does several times as fast as it finds the order of other numbers. Where they do not fit
    into one, the lower bits are sorted first.

    Args:
        keys: Integer arrays [n].

    Returns:
        int64 [n], equal to `np.lexsort(keys[::-1])`.
    """
    count = len(keys[0])
    order = np.arange(count)
    if _is_sorted(keys):
        return order
    low = (count - 1).bit_length()
    for digits in _digits(keys, WORD - low):
        digits = digits[order] << np.uint64(low)
        digits |= np.arange(count, dtype=np.uint64)
        digits.sort()
        digits &= np.uint64((1 << low) - 1)
        order = order[digits.view(np.int64)]
    return order


def _digits(keys: Sequence[np.ndarray], room: int) -> Iterator[np.ndarray]:
    """The keys' bits, the lowest of the last key first: uint64 [n], each of at most `room` bits."""
    digits, used = np.zeros(len(keys[0]), np.uint64), 0
    for key in reversed(keys):
        lowest, highest = int(key.min()), int(key.max())
        bits = (highest - lowest).bit_length()
        # What overflows here comes out right modulo 2^64, and the differences are below that.
        rest = key.astype(np.uint64) - np.uint64(lowest % 2**WORD)
        while bits:
            taken = min(bits, room - used)
            digits |= (rest & np.uint64((1 << taken) - 1)) << np.uint64(used)
            rest >>= np.uint64(taken)
            used, bits = used + taken, bits - taken
            if used == room:
                yield digits
                digits, used = np.zeros(len(digits), np.uint64), 0
    if used:
        yield digits


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
