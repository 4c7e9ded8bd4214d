"""A trained recommender's vectors, standardised as the language model reads them."""

from dataclasses import dataclass
from pathlib import Path

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
    def load(cls, folder: Path) -> "Vectors":
        """Read a trained recommender's folder and standardise by its items and train users."""
        raw = Representations.load(folder)
        normaliser = Normaliser.fit(raw.items, raw.users["train"])
        users: dict[SplitName, Tensor] = {
            name: normaliser.users(vectors) for name, vectors in raw.users.items()
        }
        return cls(users, normaliser.items(raw.items), normaliser)

    @property
    def width(self) -> int:
        """Dimension d of the vectors."""
        return self.items.shape[1]
