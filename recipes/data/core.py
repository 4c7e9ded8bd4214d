"""The k-core of interactions: every user and every item has at least k of them."""

from dataclasses import replace

import numpy as np
import pandas as pd

from recipes.datasets.dataset import Interactions


def core_of(found: Interactions, least: int) -> Interactions:
    """Leave out users and items with fewer than `least` interactions until there are none.

    Items are numbered anew, from 0, in the order of their old ids.

    Args:
        found: The interactions; rows keep their order.
        least: The k.

    Raises:
        ValueError: No interactions are left.
    """
    table = found.table
    kept = core_rows(table["user_id"].to_numpy(), table["item_id"].to_numpy(), least)
    if not len(kept):
        raise ValueError(
            f"prepare.core={least} leaves no interactions of {len(table)}: choose a smaller one"
        )
    table = table.take(kept)
    known, items = np.unique(table["item_id"].to_numpy(), return_inverse=True)
    keys = found.item_keys
    return replace(
        found,
        table=table.assign(item_id=items.astype(np.int64)),
        titles=[found.titles[item] for item in known],
        ranking=None if found.ranking is None else found.ranking[kept],
        item_keys=None if keys is None else [keys[item] for item in known],
    )


def core_rows(users: np.ndarray, items: np.ndarray, least: int) -> np.ndarray:
    """Rows of the k-core, ascending: int64.

    Args:
        users: Integers [n], each interaction's user.
        items: Integers [n], each interaction's item.
        least: The k.
    """
    kept = np.arange(len(users))
    sides = [pd.factorize(ids)[0] for ids in (users, items)]
    while True:
        before = len(kept)
        for side in (0, 1):
            often = np.bincount(sides[side])[sides[side]] >= least
            if not often.all():
                kept = kept[often]
                sides = [codes[often] for codes in sides]
        if len(kept) == before:
            return kept
