"""Popularity, the baseline that every recommender has to beat."""

import numpy as np

from recipes.about import About
from recipes.data.tables import Split
from recipes.recommenders.recommender import Counter


class Popularity(Counter):
    """Ranks items by how often they occur in the train interactions.

    The baseline TopPop of Cremonesi, Koren and Turrin (RecSys 2010), without personalisation.

    Equal counts are ordered by item id, the smaller one first, so that there are no ties. Ties
    count against a method, which would penalise every item that does not occur in training.
    """

    name = "popularity"
    summary = "how often an item occurs in the train interactions"
    about = About(
        title="Popularity",
        meaning="candidates ranked by how often they occur in the train interactions",
        order=10,
        ranks_by="train count",
    )

    def __init__(self, train: Split, num_items: int) -> None:
        counts = np.bincount(train.targets, minlength=num_items)
        order = np.lexsort((np.arange(num_items), -counts))
        self.place = np.empty(num_items)
        """Each item's place in the popularity list, from 0 for the most popular: [num_items]."""
        self.place[order] = np.arange(num_items)

    def scores(self, histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The negative of each candidate's place in the popularity list."""
        return -self.place[candidates]
