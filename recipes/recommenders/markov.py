"""A first-order Markov chain: ranks items by how often they followed the last one in training."""

import numpy as np

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.data.tables import Split
from recipes.recommenders.recommender import Counter


class Markov(Counter):
    """`P(next | last item)` by counts; popularity decides between items that never followed it.

    The maximum-likelihood transition matrix of Rendle et al. (FPMC, WWW 2010, Eq. 3) for baskets of
    one item, not personalised.
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
        self.num_items = num_items
        # A sparse matrix as sorted pairs: pair (a, b) is the number a * num_items + b.
        pairs = last[known] * num_items + following[known]
        found, counts = np.unique(pairs, return_counts=True)
        self.pairs = np.append(found, num_items**2)  # past every pair, so that each has a place
        self.counts = np.append(counts, 0)
        popularity = np.bincount(following, minlength=num_items)
        self.prior = popularity / (1 + len(following))
        """In [0, 1): less than one transition."""

    def scores(self, histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Transitions from the last item, plus the prior; after an empty history the prior."""
        last = histories[:, -1:]
        wanted = np.where(last == PADDING, -1, last * self.num_items + candidates)
        place = np.searchsorted(self.pairs, wanted)
        counts = np.where(self.pairs[place] == wanted, self.counts[place], 0)
        return counts + self.prior[candidates]
