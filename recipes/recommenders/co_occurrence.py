"""Co-occurrence: ranks items by the train users they share with the items of the history."""

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.data.tables import Split
from recipes.recommenders.recommender import Counter

HELD_AT_ONCE = 2**22
"""Numbers of the largest dense matrix, of rows and users or of rows and items: 32 MiB."""
STEPS = 2.0**40
"""Scores are multiples of one part in so many."""


class CoOccurrence(Counter):
    """Sum over the visible history of the cosine between item columns of the user-item matrix.

    Item-based collaborative filtering (Sarwar et al., WWW 2001, Section 3.1.1) on the train users:
    the cosine of items i and j is `|U_i and U_j| / sqrt(|U_i| |U_j|)`, where U_i are the users that
    met i. An item that the history holds twice counts twice; after an empty history all items score
    0. Scores are rounded to 40 binary places, so that equal sums tie, in whatever order they were
    added. The matrix is sparse, and the similarities of all items are never held at once.
    """

    name = "co-occurrence"
    summary = "items that share train users with the history (item-based cosine)"
    about = About(
        title="Co-occurrence",
        meaning="candidates ranked by how many train users they share with the history's items",
        order=14,
        ranks_by="co-occurrence",
    )
    version = 3

    def __init__(self, train: Split, num_items: int) -> None:
        # Not by stretches of equal ids: of joined splits, a user has a stretch in each.
        known, users = np.unique(train.user_ids, return_inverse=True)
        shape, ones = (num_items, len(known)), np.ones(len(users))
        self.met: Any = csr_array(
            (ones, (train.targets, users)), shape
        )  # repeated pairs are summed
        """Item columns of unit length, as rows: float64 [num_items, users]."""
        self.met.data[:] = 1
        met_by = np.diff(self.met.indptr)
        self.met.data /= np.repeat(np.sqrt(met_by), met_by)

    def scores(self, histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Sums of cosines, some rows at a time."""
        scores = np.empty(candidates.shape)
        step = max(1, HELD_AT_ONCE // max(1, *self.met.shape))
        for start in range(0, len(scores), step):
            rows = slice(start, start + step)
            scores[rows] = self._scores(histories[rows], candidates[rows])
        # In steps that floats hold exactly, no score of a few binary places lies between two.
        return np.rint(scores * STEPS) / STEPS

    def _scores(self, histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        num_items = self.met.shape[0]
        rows, columns = np.nonzero(histories != PADDING)
        items = histories[rows, columns]
        seen: Any = csr_array((np.ones(len(items)), (rows, items)), (len(histories), num_items))
        wanted = np.zeros(num_items, np.bool_)
        wanted[candidates] = True
        # [wanted, users] @ [users, rows]
        cosines = self.met[np.flatnonzero(wanted)] @ (seen @ self.met).toarray().T
        place = np.cumsum(wanted) - 1
        return cosines[place[candidates], np.arange(len(candidates))[:, None]]
