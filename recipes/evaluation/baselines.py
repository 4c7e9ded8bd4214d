"""Popularity: the baseline that any recommender has to beat."""

import numpy as np
import pandas as pd

from recipes.scoring.arrays import Floats, Ints


def popularity_scores(interactions: pd.DataFrame, num_items: int, candidates: Ints) -> Floats:
    """Score candidates by how often they occur among the train users' interactions.

    Equal counts are ordered by item id, the smaller one first, so that no tie is left: counting
    ties against the method would otherwise punish every item that train users never met.

    Args:
        interactions: The prepare stage's table (columns `split`, `item_id`).
        num_items: Items of the catalogue.
        candidates: int64 [n, c], item ids.

    Returns:
        float64 [n, c]: minus the item's place in the popularity list, 0 for the most popular.
    """
    train = interactions.loc[interactions["split"] == "train", "item_id"].to_numpy()
    counts = np.bincount(train, minlength=num_items)
    order = np.lexsort((np.arange(num_items), -counts))
    place = np.empty(num_items)
    place[order] = np.arange(num_items)
    return -place[candidates]
