"""numpy's unstable quicksort, step by step, as numpy 1 took them before it had vector instructions.

How it leaves rows of equal keys follows from these steps. Published windows of MovieLens stand in
that order, and today's numpy takes others on most machines, so they are written out here: an
introsort that has the median of three as pivot and sorts 16 elements or fewer by insertion. Source:
https://github.com/numpy/numpy/blob/v1.24.0/numpy/core/src/npysort/quicksort.cpp (`aquicksort_`).
"""

import numpy as np

INSERTION = 15
"""Runs no longer than this many elements beyond the first are sorted by insertion."""


def unstable_order(keys: np.ndarray) -> np.ndarray:
    """Indices that sort `keys`, equal ones in the order in which numpy 1 left them.

    Args:
        keys: Integers [n].

    Returns:
        int64 [n]

    Raises:
        ValueError: The keys are so adverse that numpy would have changed over to a heap sort.
    """
    values = keys.tolist()
    order = list(range(len(values)))
    waiting = [(0, len(values) - 1, 2 * (max(len(values), 1).bit_length() - 1))]
    while waiting:
        low, high, depth = waiting.pop()
        if depth < 0:
            raise ValueError("keys on which numpy changes over to a heap sort are not supported")
        while high - low > INSERTION:
            split = _partition(values, order, low, high)
            depth -= 1
            left, right = (low, split - 1), (split + 1, high)
            if split - low < high - split:  # the larger part waits
                left, right = right, left
            waiting.append((*left, depth))
            low, high = right
        _insert(values, order, low, high)
    return np.array(order, np.int64)


def _partition(values: list[int], order: list[int], low: int, high: int) -> int:
    """Divide a run around the median of its first, middle and last key; return where it stands."""
    middle = low + (high - low) // 2
    for one, other in ((low, middle), (middle, high), (low, middle)):
        if values[order[other]] < values[order[one]]:
            order[one], order[other] = order[other], order[one]
    pivot = values[order[middle]]
    left, right = low, high - 1
    order[middle], order[right] = order[right], order[middle]
    while True:
        left += 1
        while values[order[left]] < pivot:
            left += 1
        right -= 1
        while pivot < values[order[right]]:
            right -= 1
        if left >= right:
            break
        order[left], order[right] = order[right], order[left]
    order[left], order[high - 1] = order[high - 1], order[left]
    return left


def _insert(values: list[int], order: list[int], low: int, high: int) -> None:
    """Sort a short run by insertion."""
    for end in range(low + 1, high + 1):
        moved = order[end]
        place = end
        while place > low and values[moved] < values[order[place - 1]]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = moved
