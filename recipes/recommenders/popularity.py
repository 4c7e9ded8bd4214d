"""Popularity, the baseline that every recommender has to beat."""

import numpy as np

from recipes.about import About
from recipes.data.tables import Split
from recipes.recommenders.recommender import Counter


class Popularity(Counter):
    """Ranks items by how often they occur in the train interactions.

    The baseline TopPop of Cremonesi, Koren and Turrin (RecSys 2010), without personalisation.
    """

    name = "popularity"
    summary = "how often an item occurs in the train interactions"
    about = About(
        title="Popularity",
        meaning="candidates ranked by how often they occur in the train interactions",
        order=10,
        ranks_by="train count",
    )
    version = 2

    def __init__(self, train: Split, num_items: int) -> None:
        self.counts = np.bincount(train.targets, minlength=num_items).astype(np.float64)
        """How often each item occurs: [num_items]."""

    def scores(self, histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Each candidate's count."""
        return self.counts[candidates]
