"""A first-order Markov chain: ranks items by how often they followed the last one in training."""

import numpy as np
from scipy.sparse import csr_array

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.data.tables import Split
from recipes.recommenders.recommender import Counter

HELD_AT_ONCE = 2**20
"""Transition counts held at once, 8 MiB."""
FEW = 16
"""A row's candidates are looked up singly where the catalogue is so many times as large."""


class Markov(Counter):
    """`P(next | last item)` by counts; popularity decides between items that never followed it.

    The maximum-likelihood transition matrix of Rendle et al. (FPMC, WWW 2010, Eq. 3) for baskets of
    one item, not personalised. The matrix is sparse.
    """

    name = "markov"
    summary = "first-order Markov chain: what followed the last item in train sequences"
    about = About(
        title="Markov chain",
        meaning="candidates ranked by how often they followed the last item in the train sequences",
        order=12,
        ranks_by="transition count",
    )

    def __init__(self, train: Split, num_items: int) -> None:
        last, following = train.histories[:, -1], train.targets
        known = last != PADDING
        pairs = last[known], following[known]
        # One more row than items: nothing is known to follow an empty history, whose last item is
        # padding, -1. Repeated pairs are summed.
        shape = num_items + 1, num_items
        self.transitions = csr_array((np.ones(len(pairs[0])), pairs), shape)
        popularity = np.bincount(following, minlength=num_items)
        self.prior = popularity / (1 + len(following))
        """In [0, 1): less than one transition."""

    def scores(self, histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Transitions from the last item, plus the prior; after an empty history the prior."""
        scores = self.prior[candidates]
        if candidates.shape[1] * FEW < len(self.prior):
            return scores + self.transitions[histories[:, -1:], candidates].toarray()
        step = max(1, HELD_AT_ONCE // len(self.prior))
        for start in range(0, len(scores), step):
            rows = slice(start, start + step)
            counts = self.transitions[histories[rows, -1]].toarray()
            scores[rows] += np.take_along_axis(counts, candidates[rows], axis=1)
        return scores
