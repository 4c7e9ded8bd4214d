"""Ranks of targets in the full catalogue, and the validation metrics that stop training."""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1024
"""Maximum number of rows scored at once: memory never holds all scores [rows, num_items]."""
SCORES = 2**23
"""Maximum number of scores held at once: whatever the catalogue, they take at most 32 MiB."""


@dataclass(frozen=True)
class Validation:
    """Means over windows, ranking the whole catalogue, items of the history included."""

    ndcg_10: float
    """NDCG@10: 1 / log2(1 + rank) for targets of rank 10 or better, else 0."""

    hr_1: float
    """HitRatio@1: share of targets of rank 1."""


def target_ranks(users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target in the catalogue, from 1; ties count against the target, and so does NaN.

    Args:
        users: float [rows, hidden], user representations.
        items: float [num_items, hidden], item embeddings.
        targets: int64 [rows], item ids.

    Returns:
        int64 [rows].
    """
    ranks, rows = [], max(1, min(CHUNK, SCORES // len(items)))
    for user, target in zip(users.split(rows), targets.split(rows), strict=True):
        scores = user @ items.T
        worse = (scores < scores.gather(1, target[:, None])).sum(dim=1)
        ranks.append(len(items) - worse)
    return torch.cat(ranks)


def validation(ranks: Tensor) -> Validation:
    """Validation metrics of the targets' ranks (int64 [rows])."""
    gains = 1 / torch.log2(1 + ranks.double())
    return Validation(
        ndcg_10=torch.where(ranks <= 10, gains, 0.0).mean().item(),
        hr_1=(ranks == 1).double().mean().item(),
    )
