"""Where the target stands in a ranking of the full catalogue: the figure that stops training."""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1024
"""Rows scored at once, at most: the scores [rows, num_items] are never held whole."""
SCORES = 2**23
"""Scores held at once, at most; whatever the catalogue, its scores take no more than 32 MiB."""


@dataclass(frozen=True)
class Validation:
    """Means over windows; the whole catalogue competes, items of the history included."""

    ndcg_10: float
    """1 / log2(1 + rank) for targets of rank 10 or better, else 0."""

    hr_1: float
    """Share of targets of rank 1."""


def target_ranks(users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target, from 1; a tie counts against it.

    Args:
        users: float [rows, hidden].
        items: float [num_items, hidden].
        targets: int64 [rows].

    Returns:
        int64 [rows].
    """
    ranks, rows = [], max(1, min(CHUNK, SCORES // len(items)))
    for user, target in zip(users.split(rows), targets.split(rows), strict=True):
        scores = user @ items.T
        ranks.append((scores >= scores.gather(1, target[:, None])).sum(dim=1))
    return torch.cat(ranks)


def validation(ranks: Tensor) -> Validation:
    """Summarise ranks (int64 [rows])."""
    gains = 1 / torch.log2(1 + ranks.double())
    return Validation(
        ndcg_10=torch.where(ranks <= 10, gains, 0.0).mean().item(),
        hr_1=(ranks == 1).double().mean().item(),
    )
