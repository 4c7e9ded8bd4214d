"""What a recommender is: a network that gives vectors and scores, or a counter that gives scores.

A network's vectors fill the slots of prompts and route adapters. A counter has none, so it can be
compared as a method and cannot be a source of routing. Each of both is also a method of its name.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.about import About
from recipes.data.tables import Split
from recipes.experiment import RecommenderConfig


class SequenceRecommender(nn.Module):
    """History -> user representation; score of an item = representation . item embedding.

    Subclasses are built as `cls(config, num_items, max_history)`, and are listed in
    `recipes/recommenders/__init__.py`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `python -m recipes list`."""
    about: ClassVar[About]
    version: ClassVar[int] = 1
    """Bumped when the same settings give other results."""

    def __init__(self, config: RecommenderConfig, num_items: int, max_history: int) -> None:
        super().__init__()

    @classmethod
    def check(cls, config: RecommenderConfig) -> None:
        """Refuse impossible values of what only this network reads (ValueError)."""

    @property
    def item_embeddings(self) -> Tensor:
        """Float [num_items, hidden]."""
        raise NotImplementedError

    def forward(self, histories: Tensor) -> Tensor:
        """User representations.

        Args:
            histories: int64 [rows, time], item ids, oldest first, left-padded with -1.

        Returns:
            float [rows, hidden].
        """
        raise NotImplementedError

    def loss(self, histories: Tensor, targets: Tensor) -> Tensor:
        """Mean softmax cross-entropy over the whole catalogue, in nats; a scalar.

        The paper's is binary cross-entropy against one random negative. This one needs no sampling,
        costs little on a catalogue of a few thousand items, and makes SASRec better (Klenitskiy and
        Vasilev, RecSys 2023).
        """
        return F.cross_entropy(self(histories) @ self.item_embeddings.T, targets)


class Counter(ABC):
    """Scores from counts of the train windows. Subclasses are built as `cls(train, num_items)`.

    Each window's target is one interaction of a train user, and the windows of a user cover all of
    them.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `python -m recipes list`."""
    about: ClassVar[About]
    version: ClassVar[int] = 1
    """Bumped when scores change."""

    @abstractmethod
    def __init__(self, train: Split, num_items: int) -> None: ...

    @abstractmethod
    def scores(self, histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Score candidates.

        Args:
            histories: int64 [n, max_history], item ids, oldest first, left-padded with -1.
            candidates: int64 [n, c], item ids.

        Returns:
            float64 [n, c]; higher is better. Ties count against the method.
        """


AnyRecommender = type[SequenceRecommender] | type[Counter]
