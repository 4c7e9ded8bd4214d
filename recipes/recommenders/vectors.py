"""A recommender's vectors, standardised as the language model reads them.

What a network makes of an empty history is finite and means nothing. So the statistics leave the
train windows of empty histories out, and an empty history's standardised vector is zero, the mean
of all others, in every split: it tells a gate and a prompt's slot nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.data.splits import SplitName
from recipes.recommenders.normaliser import Normaliser
from recipes.recommenders.representations import Representations


@dataclass(frozen=True)
class Vectors:
    """Standardised vectors, and the statistics by which they were standardised."""

    users: dict[SplitName, Tensor]
    """User representations by split, float32 [rows, d]; row i belongs to the split's row i."""
    items: Tensor
    """Item embeddings, float32 [num_items, d], by item id."""
    normaliser: Normaliser

    @classmethod
    def load(
        cls,
        folder: Path,
        empty: Mapping[SplitName, np.ndarray],
        normaliser: Normaliser | None = None,
    ) -> "Vectors":
        """Read a recommender's folder and standardise by its items and train users.

        Args:
            folder: The folder of the recommender's stage.
            empty: bool [rows] by split: the windows whose representations mean nothing.
            normaliser: Other statistics to standardise by.
        """
        raw = Representations.load(folder)
        nothing = {name: torch.tensor(empty[name])[:, None] for name in raw.users}
        if normaliser is None:
            known = raw.users["train"][~nothing["train"][:, 0]]
            normaliser = Normaliser.fit(raw.items, known)
        users: dict[SplitName, Tensor] = {
            name: normaliser.users(vectors).masked_fill(nothing[name], 0)
            for name, vectors in raw.users.items()
        }
        return cls(users, normaliser.items(raw.items), normaliser)

    @property
    def width(self) -> int:
        """Dimension d of the vectors."""
        return self.items.shape[1]
