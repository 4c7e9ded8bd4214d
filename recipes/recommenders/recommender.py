"""The two kinds of recommenders: networks give vectors and scores, counters give only scores.

A network's vectors fill the slots of prompts and route adapters. A counter has no vectors, so it
can be compared as a method but cannot route. Every recommender is also a method of the same name.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.data.tables import Split
from recipes.experiment import RecommenderConfig
from recipes.recommenders.losses import make_loss


class SequenceRecommender(nn.Module):
    """A network: history -> user representation, whose dot product with an item's is the score.

    Subclasses are built as `cls(config, num_items, max_history)`, and are listed in
    `recipes/recommenders/__init__.py`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """Description in one line, for `python -m recipes list`."""
    about: ClassVar[About]
    version: ClassVar[int] = 1
    """Raised when the same settings begin to give other results."""

    def __init__(self, config: RecommenderConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        self.loss_of_states = make_loss(config, num_items)
        self.trains_all_positions = config.positions == "all"

    @classmethod
    def check(cls, config: RecommenderConfig) -> None:
        """Refuse impossible values of settings that only this network reads (ValueError)."""

    @property
    def item_embeddings(self) -> Tensor:
        """Item embeddings, float [num_items, hidden]."""
        raise NotImplementedError

    def forward(self, histories: Tensor) -> Tensor:
        """User representations.

        Args:
            histories: int64 [rows, time], item ids, oldest first, left-padded with -1.

        Returns:
            float [rows, hidden].
        """
        raise NotImplementedError

    def states(self, histories: Tensor) -> Tensor:
        """The representation after each item, for `recommender.positions: all`.

        A network that has none leaves this out, and that setting is refused.

        Args:
            histories: int64 [rows, time], item ids, oldest first, left-padded with -1.

        Returns:
            float [rows, time, hidden]. The state at an item reads no later one, and the last is
            what `forward` gives; at padding anything finite.
        """
        raise NotImplementedError

    def loss(self, histories: Tensor, targets: Tensor) -> Tensor:
        """Mean of `recommender.loss` over the predicted items, in nats; a scalar.

        Args:
            histories: int64 [rows, time], item ids, oldest first, left-padded with -1.
            targets: int64 [rows], the items that came next.
        """
        seen = torch.cat([histories, targets[:, None]], dim=1)
        if self.trains_all_positions:
            real = histories != PADDING
            rows = real.nonzero()[:, 0]
            states, targets = self.states(histories)[real], seen[:, 1:][real]
        else:
            rows = torch.arange(len(histories))
            states = self(histories)
        return self.loss_of_states(states, self.item_embeddings, targets, seen, rows)


class Counter(ABC):
    """A recommender that scores items by counts over the train windows.

    Each interaction of a train user is the target of exactly one window. Subclasses are built as
    `cls(train, num_items)`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """Description in one line, for `python -m recipes list`."""
    about: ClassVar[About]
    version: ClassVar[int] = 1
    """Raised when the scores change."""

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
