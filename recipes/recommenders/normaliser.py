"""Standardisation of the recommender's vectors before a language model reads them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recipes.artifacts import read_tensors, write_tensors


@dataclass(frozen=True)
class Normaliser:
    """Mean and standard deviation of each dimension, float32 [d] each; saved with an adapter.

    Item embeddings are standardised over the catalogue, user representations over the train split,
    so that gate and projector need not learn the scale of the recommender's vectors.
    """

    item_mean: Tensor
    item_std: Tensor
    user_mean: Tensor
    user_std: Tensor

    @classmethod
    def fit(cls, items: Tensor, train_users: Tensor) -> "Normaliser":
        """Compute the statistics.

        Args:
            items: float32 [num_items, d], item embeddings.
            train_users: float32 [rows, d], user representations of the train split only, those of
                empty histories left out (see `Vectors`). Of no rows, the mean is 0 and the standard
                deviation 1.

        Raises:
            ValueError: A tensor holds NaN or infinity.
        """
        return cls(*_statistics("items", items), *_statistics("train_users", train_users))

    def items(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.item_mean) / self.item_std

    def users(self, representations: Tensor) -> Tensor:
        return (representations - self.user_mean) / self.user_std

    @classmethod
    def load(cls, path: Path) -> "Normaliser":
        """Read what `save` wrote."""
        return cls(**read_tensors(path))

    def save(self, path: Path) -> None:
        write_tensors(path, vars(self))


def _statistics(name: str, vectors: Tensor) -> tuple[Tensor, Tensor]:
    if not torch.isfinite(vectors).all():
        raise ValueError(f"{name} holds NaN or infinity: the recommender's training has diverged")
    if not len(vectors):
        return torch.zeros(vectors.shape[1]), torch.ones(vectors.shape[1])
    std, mean = torch.std_mean(vectors.float(), dim=0, correction=0)
    # A constant dimension carries no information: it becomes 0 instead of a division by 0.
    return mean, torch.where(std > 1e-6, std, torch.ones_like(std))
