"""The losses that a network is trained with: `recommender.loss`.

A loss compares n states, each of which predicts one item, with the item embeddings. Random items
are drawn from torch's global generator, which `train_epoch` seeds before every epoch.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.experiment import RecommenderConfig


class Loss(ABC):
    """A loss over n states.

    Args:
        num_items: Number of items.
        num_negatives: Random items for each target; None takes the loss's own number.
    """

    default_negatives: ClassVar[int]

    def __init__(self, num_items: int, num_negatives: int | None) -> None:
        self.num_items = num_items
        self.num_negatives = num_negatives or min(self.default_negatives, num_items - 1)
        if self.num_negatives >= num_items:
            raise ValueError(
                f"recommender.num_negatives={self.num_negatives}: a target has only "
                f"{num_items - 1} other items of these data; choose no more"
            )

    @property
    @abstractmethod
    def guessing(self) -> float:
        """The loss of equal scores, in nats."""

    @abstractmethod
    def __call__(
        self, states: Tensor, items: Tensor, targets: Tensor, seen: Tensor, rows: Tensor
    ) -> Tensor:
        """The mean loss of n states in nats, a scalar.

        Args:
            states: float [n, hidden].
            items: float [num_items, hidden], item embeddings.
            targets: int64 [n], the item that each state predicts.
            seen: int64 [users, width], all items of each user's window, target included; -1 is
                ignored.
            rows: int64 [n], the line of `seen` that each state belongs to.
        """


class CrossEntropy(Loss):
    """Softmax cross entropy over the whole catalogue.

    It needs no sampling, costs little on a catalogue of a few thousand items, and improves SASRec
    (Klenitskiy and Vasilev, RecSys 2023).
    """

    default_negatives = 0

    @property
    def guessing(self) -> float:
        """The loss of equal scores: the logarithm of the number of items."""
        return math.log(self.num_items)

    def __call__(
        self, states: Tensor, items: Tensor, targets: Tensor, seen: Tensor, rows: Tensor
    ) -> Tensor:
        """The mean of -log softmax(scores)[target]."""
        return F.cross_entropy(states @ items.T, targets)


class SampledSoftmax(Loss):
    """Softmax cross entropy over the target and random items.

    The random items are different ones, drawn uniformly for each batch and shared by its states,
    as the additional samples of Hidasi and Karatzoglou (CIKM 2018, section 3). A state leaves out
    its own target among them. Sampled softmax corrects each score by the logarithm of the item's
    probability of being drawn (Jean et al., ACL 2015, section 3.2), which is equal for all items
    here and therefore cancels.
    """

    default_negatives = 256

    @property
    def guessing(self) -> float:
        """The loss of equal scores: the logarithm of the number of items compared."""
        return math.log(1 + self.num_negatives)

    def __call__(
        self, states: Tensor, items: Tensor, targets: Tensor, seen: Tensor, rows: Tensor
    ) -> Tensor:
        """The mean of -log softmax(scores of target and random items)[target]."""
        drawn = torch.randperm(self.num_items)[: self.num_negatives]
        own = (states * F.embedding(targets, items)).sum(dim=1, keepdim=True)
        others = (states @ F.embedding(drawn, items).T).masked_fill(
            drawn == targets[:, None], -torch.inf
        )
        # [n]: log(exp(own) + sum of exp(others)) - own
        return (torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]).mean()


class BinaryCrossEntropy(Loss):
    """Binary cross entropy of the target against random items (SASRec's paper, section III-E).

    Each state draws its own random items, uniformly and one by one, from those that are not in
    `seen`. The paper draws none of the user's whole sequence, which includes the items to be
    predicted in validation and test.
    """

    default_negatives = 1

    @property
    def guessing(self) -> float:
        """The loss of scores 0."""
        return (1 + self.num_negatives) * math.log(2)

    def __call__(
        self, states: Tensor, items: Tensor, targets: Tensor, seen: Tensor, rows: Tensor
    ) -> Tensor:
        """The mean of -log(sigmoid(target)) - the sum of log(1 - sigmoid(random item))."""
        drawn = unseen(seen, rows, self.num_items, self.num_negatives)
        own = (states * F.embedding(targets, items)).sum(dim=1)
        # [n, hidden] . [n, negatives, hidden] -> [n, negatives]
        others = torch.einsum("nh,nkh->nk", states, F.embedding(drawn, items))
        return (F.softplus(-own) + F.softplus(others).sum(dim=1)).mean()


def unseen(seen: Tensor, rows: Tensor, num_items: int, count: int) -> Tensor:
    """Draw items that a user has not met, uniformly and independently.

    Args:
        seen: int64 [users, width], items that are not drawn; -1 is ignored.
        rows: int64 [n], lines of `seen`.
        num_items: Number of items.
        count: Number of items to draw for each of `rows`.

    Returns:
        int64 [n, count].

    Raises:
        ValueError: A user has met all items.
    """
    met = torch.where(seen < 0, num_items, seen).sort(dim=1).values
    repeated = F.pad(met[:, 1:] == met[:, :-1], (1, 0))
    met = torch.where(repeated, num_items, met).sort(dim=1).values
    real = met < num_items
    free = num_items - real.sum(dim=1)
    if free.min() < 1:
        raise ValueError(
            f"recommender.loss='bce': a history has all {num_items} items, so none is left to "
            "draw; choose cross-entropy"
        )
    place = (torch.rand(len(rows), count, dtype=torch.float64) * free[rows, None]).long()
    # The k-th unseen item is k plus the number of met items before it: those whose value less
    # their own place is at most k.
    before = torch.where(real, met - torch.arange(met.shape[1]), num_items)
    return place + torch.searchsorted(before[rows], place, right=True)


LOSSES: dict[str, type[Loss]] = {
    "cross-entropy": CrossEntropy,
    "sampled-softmax": SampledSoftmax,
    "bce": BinaryCrossEntropy,
}


def make_loss(config: RecommenderConfig, num_items: int) -> Loss:
    """The loss that a config names.

    Raises:
        ValueError: There are fewer items than random ones are wanted.
    """
    return LOSSES[config.loss](num_items, config.num_negatives)


def check_loss(config: RecommenderConfig) -> None:
    """Refuse a number of negatives for a loss that has none (ValueError)."""
    if config.loss == "cross-entropy" and config.num_negatives is not None:
        raise ValueError(
            f"recommender.num_negatives={config.num_negatives} belongs to a loss that draws items: "
            "leave it out, or set recommender.loss to sampled-softmax or bce"
        )
