"""Frozen candidate lists: the target and uniform negatives, shuffled.

The reference draws new candidates at every access, so its figures depend on the number of workers.
Here they are drawn once and stored. A row's draw is a function of (seed, split, row), of what must
not be a negative of the row, and of the catalogue's size: other rows change nothing.

Never a negative is the target and, as in the reference, the visible history; or all that the user
ever meets; or nothing else. Leaving out any items of the user is sound only where no user meets an
item twice: otherwise a candidate from the history could only be the target. So `prepare` leaves
none out there, unless it is told to.
"""

import numpy as np

from recipes.data.padding import PADDING
from recipes.data.splits import SPLITS, SplitName

BLOCK = 4096
"""Rows drawn at once, so few that their intermediate arrays stay in the processor's cache."""
INDEX_BITS = 11
"""Low bits of a raw 64-bit number that its uniform number does not use: it keeps the other 53."""


class TooFewItemsError(ValueError):
    """A row leaves fewer items than it needs negatives."""


RAW_AT_ONCE = 4
"""64-bit numbers that Philox makes of one state of its counter."""


class CandidateStream:
    """Draws the candidates of one split: of any rows, in any order, in any number of threads."""

    def __init__(
        self, num_items: int, num_candidates: int, seed: int, split: SplitName, number: int = 0
    ) -> None:
        """Take no numbers yet.

        Args:
            num_items: Size of the catalogue; item ids are 0 .. num_items-1.
            num_candidates: Number c of candidates in a row, the target included.
            seed: Random seed, 0 or more.
            split: Name of the split; each split has its own stream of random numbers.
            number: Number of the draw, from 0, where a row has several; each has its own stream.

        Raises:
            ValueError: `num_candidates` is below 2, or `seed` is negative.
        """
        check_draw(num_candidates, seed)
        self.num_items, self.num_candidates, self.split = num_items, num_candidates, split
        # The raw Philox stream, which numpy keeps unchanged for ever; it gives no such promise for
        # `Generator.random`, and candidates must outlive an upgrade.
        self._key = [seed, SPLITS.index(split), number] if number else [seed, SPLITS.index(split)]

    def draw(self, excluded: np.ndarray, targets: np.ndarray, first: int = 0) -> np.ndarray:
        """Draw the candidates of n rows that follow each other in the split.

        Args:
            excluded: Integers [n, width], item ids that must not be negatives of the row. -1 is
                ignored; the target is excluded in any case.
            targets: Integers [n], item ids.
            first: Number of the first of these rows within the split.

        Returns:
            int64 [n, c]: c different items, the target among them, in uniformly random order.

        Raises:
            TooFewItemsError: A row leaves fewer than `num_candidates - 1` items to draw from.
        """
        candidates = np.empty((len(targets), self.num_candidates), np.int64)
        for start in range(0, len(targets), BLOCK):
            rows = slice(start, start + BLOCK)
            self._block(excluded[rows], targets[rows], first + start, candidates[rows])
        return candidates

    def _block(
        self, excluded: np.ndarray, targets: np.ndarray, first: int, out: np.ndarray
    ) -> None:
        count, draws = len(targets), self.num_candidates - 1
        taken = _sorted_unique(excluded, targets, self.num_items)
        free = self.num_items - (taken < self.num_items).sum(axis=0)
        if free.min(initial=draws) < draws:
            raise TooFewItemsError(
                f"num_candidates={self.num_candidates} asks for {draws} negatives, but a row of "
                f"{self.split} has only {free.min()} of the {self.num_items} items left: choose "
                "fewer candidates"
            )
        raw = self._raw(first, count)
        uniform = (raw[:, :draws] >> np.uint64(INDEX_BITS)) * 2.0**-53
        chosen = np.empty((self.num_candidates, count), np.int64)
        chosen[:draws] = _unrank(_subsets(uniform, free), taken)
        chosen[draws] = targets
        flat = _random_order(raw[:, draws:]) * count + np.arange(count)[:, None]
        chosen.take(flat, out=out, mode="clip")  # unlike the default mode, without a copy

    def _raw(self, first: int, count: int) -> np.ndarray:
        """The random numbers of some rows: uint64 [count, 2 c - 1]."""
        width = 2 * self.num_candidates - 1
        numbers = np.random.Philox(np.random.SeedSequence(self._key))
        steps, passed = divmod(first * width, RAW_AT_ONCE)
        numbers.advance(steps)
        return numbers.random_raw(passed + count * width)[passed:].reshape(count, width)


def check_draw(num_candidates: int, seed: int) -> None:
    """Refuse settings that are impossible whatever the data (ValueError)."""
    if num_candidates < 2:
        raise ValueError(f"num_candidates={num_candidates}: choose 2 or more (target + negatives)")
    if seed < 0:
        raise ValueError(f"candidate_seed={seed}: choose 0 or more")


def _sorted_unique(excluded: np.ndarray, targets: np.ndarray, num_items: int) -> np.ndarray:
    """Each row's distinct ids in ascending order: [n, width] and [n] -> int32 [width + 1, n].

    Padding and repeated ids become a number above every item id, so they come last.
    """
    ids = np.empty((len(targets), excluded.shape[1] + 1), np.int32)
    ids[:, :-1], ids[:, -1] = excluded, targets
    beyond = num_items + ids.shape[1]
    ids[ids == PADDING] = beyond
    ids.sort(axis=1)
    repeated = ids[:, 1:] == ids[:, :-1]
    if (repeated & (ids[:, 1:] < num_items)).any():
        ids[:, 1:][repeated] = beyond
        ids.sort(axis=1)
    return np.ascontiguousarray(ids.T)


def _subsets(uniform: np.ndarray, free: np.ndarray) -> np.ndarray:
    """A uniformly random subset of {0 .. free-1} for each row: [n, k] -> int32 [k, n].

    Floyd's algorithm, all rows at once: for j = free-k .. free-1, draw t from {0 .. j} and take t,
    or j if t was taken before. So where all t are different, they are the subset.
    """
    draws = uniform.shape[1]
    drawn = (uniform * (free[:, None] + np.arange(1 - draws, 1))).astype(np.int32)
    ordered = np.sort(drawn, axis=1)
    again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    drawn = np.ascontiguousarray(drawn.T)
    chosen, last = drawn[:, again], free[again] - draws
    for step in range(1, draws):
        repeated = (chosen[:step] == chosen[step]).any(axis=0)
        chosen[step] = np.where(repeated, last + step, chosen[step])
    drawn[:, again] = chosen
    return drawn


def _unrank(ranks: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Item ids of the ranks among each row's free items: [k, n] -> [k, n].

    The free item of rank r is r plus the number of taken items below it; the j-th taken item
    (from 0, ascending) lies below it if `taken[j] - j <= r`.
    """
    # Counted in the smallest numbers that hold the count: four times as many at once as in int32.
    below = np.zeros(ranks.shape, np.min_scalar_type(len(taken)))
    lies_below = np.empty(ranks.shape, np.bool_)
    for j, ids in enumerate(taken):
        np.less_equal(ids - np.int32(j), ranks, out=lies_below)
        below += lies_below.view(np.uint8)
    return ranks + below


def _random_order(raw: np.ndarray) -> np.ndarray:
    """A permutation of 0 .. c-1 for each row: the order that sorts its c numbers, int64 [n, c].

    Numbers are compared without their low bits, and ties are in order of position. The position
    is written into the low bits, so that sorting the numbers themselves yields the permutation.
    """
    width = raw.shape[1]
    if width > 1 << INDEX_BITS:
        return (raw >> np.uint64(INDEX_BITS)).argsort(axis=1, kind="stable")
    low = np.uint64((1 << INDEX_BITS) - 1)
    keys = raw & ~low | np.arange(width, dtype=np.uint64)
    keys.sort(axis=1)
    return (keys & low).astype(np.int64)
