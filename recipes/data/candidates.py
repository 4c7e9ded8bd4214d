"""Frozen candidate lists: the target and uniform negatives, shuffled.

The reference draws new candidates at every access, so its figures depend on the number of workers.
Here they are drawn once and stored. A row's draw is a function of (seed, split, row), of the row's
own history and target, and of the catalogue's size: adding or removing other rows changes nothing.

Negatives are all items but the target and, as in the reference, but the visible history. Leaving
out the history is sound only where no user meets an item twice: otherwise a candidate from the
history could only be the target. `prepare` decides this from the interactions.
"""

import numpy as np

from recipes.data.ragged import PADDING
from recipes.data.splits import SPLITS, SplitName


def draw_candidates(
    excluded: np.ndarray,
    targets: np.ndarray,
    num_items: int,
    num_candidates: int,
    seed: int,
    split: SplitName,
) -> np.ndarray:
    """Draw every row's candidates.

    Args:
        excluded: int64 [n, width], item ids that are no negatives of the row; -1 is ignored, and
            the target need not be there.
        targets: int64 [n].
        num_items: Items of the catalogue, 0 .. num_items-1.
        num_candidates: Candidates c of a row, the target included.
        seed: Not negative.
        split: Each split has its own stream of random numbers.

    Returns:
        int64 [n, c]: different items, the target once, in uniformly random order.

    Raises:
        ValueError: `num_candidates` is below 2, `seed` is negative, or a row leaves fewer than
            `num_candidates - 1` items to draw from.
    """
    check_draw(num_candidates, seed)
    draws = num_candidates - 1
    taken = _sorted_unique(np.concatenate([excluded, targets[:, None]], axis=1), num_items)
    free = num_items - (taken < num_items).sum(axis=1)
    if free.min(initial=draws) < draws:
        raise ValueError(
            f"num_candidates={num_candidates} asks for {draws} negatives, but a row of {split} has "
            f"only {free.min()} of the {num_items} items left: choose fewer candidates"
        )
    uniform = _uniform(len(targets), draws + num_candidates, seed, split)
    negatives = _unrank(_subsets(uniform[:, :draws], free), taken)
    candidates = np.concatenate([negatives, targets[:, None]], axis=1)
    order = uniform[:, draws:].argsort(axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)


def check_draw(num_candidates: int, seed: int) -> None:
    """Refuse settings that no data can make right (ValueError)."""
    if num_candidates < 2:
        raise ValueError(f"num_candidates={num_candidates}: choose 2 or more (target + negatives)")
    if seed < 0:
        raise ValueError(f"candidate_seed={seed}: choose 0 or more")


def _uniform(rows: int, width: int, seed: int, split: SplitName) -> np.ndarray:
    """float64 [rows, width] in [0, 1); row i is the same whatever `rows` is.

    From the raw Philox stream, which numpy keeps unchanged for ever; it gives no such promise for
    `Generator.random`, and candidates must outlive an upgrade.
    """
    stream = np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split)]))
    bits = stream.random_raw(rows * width).reshape(rows, width)
    return (bits >> np.uint64(11)) * 2.0**-53


def _sorted_unique(ids: np.ndarray, num_items: int) -> np.ndarray:
    """Sort each row's ids; padding and repetitions become a number past every item, at the end."""
    beyond = num_items + ids.shape[1]
    ids = np.sort(np.where(ids == PADDING, beyond, ids), axis=1)
    ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = beyond
    return np.sort(ids, axis=1)


def _subsets(uniform: np.ndarray, free: np.ndarray) -> np.ndarray:
    """A uniformly random subset of {0 .. free-1} for each row: int64 [n, k], k = uniform.shape[1].

    Floyd's algorithm, all rows at once: for j = free-k .. free-1, draw t from {0 .. j} and take t,
    or j if t was taken before.
    """
    chosen = np.full(uniform.shape, -1, np.int64)
    draws = uniform.shape[1]
    for step in range(draws):
        last = free - draws + step
        drawn = (uniform[:, step] * (last + 1)).astype(np.int64)
        repeated = (chosen[:, :step] == drawn[:, None]).any(axis=1)
        chosen[:, step] = np.where(repeated, last, drawn)
    return chosen


def _unrank(ranks: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Item ids of the ranks among each row's free items: [n, k] -> [n, k].

    The free item of rank r is r plus the number of taken items below it; the j-th taken item
    (from 0, ascending) lies below it if `taken[j] - j <= r`.
    """
    below = taken - np.arange(taken.shape[1])
    return ranks + (below[:, None, :] <= ranks[:, :, None]).sum(axis=2)
