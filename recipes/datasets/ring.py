"""A ring of items, in which the last item alone determines the next one.

A user starts at some item of the ring and moves on by one item a step. A model that reads the last
item must be right in every row, and popularity must be at chance. This makes the dataset a sanity
check of anything new in the pipeline.

Ids do not ascend along the walk. If they did, the target's would often be the smallest, as the
items before it are no candidates, and popularity, whose ties go to the smaller id, would find it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recipes.datasets.dataset import Dataset, Interactions
from recipes.experiment import PrepareConfig

USERS, ITEMS, STEPS = 240, 40, 8
NEXT = 7
"""What is added to an item's id, around the ring, to have the next one's."""


class Ring(Dataset):
    """The ring."""

    name = "ring"
    summary = "a sanity check: each item of a ring is followed by the next one; needs no files"

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions:
        """Make the walks; users start in the order of their ids."""
        users, positions = np.indices((USERS, STEPS))
        items = (users + NEXT * positions) % ITEMS
        columns = {"user_id": users, "item_id": items, "position": positions, "timestamp": users}
        table = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
        return Interactions(table, [f"stop number {item}" for item in range(ITEMS)])
