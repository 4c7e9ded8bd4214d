"""The three kinds of recommenders: networks, sources of vectors, and counters.

Networks are trained; sources have their vectors from elsewhere. The vectors of both fill the slots
of prompts and route adapters. A counter gives scores alone, so it can be compared as a method but
cannot route. Every recommender is also a method of the same name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recipes.about import About
from recipes.checksums import Checksums
from recipes.data.padding import PADDING
from recipes.data.splits import SplitName
from recipes.data.tables import PreparedData, Split
from recipes.experiment import RecommenderConfig
from recipes.recommenders.losses import make_loss

LOCATED = ("encoder", "user_vectors", "item_vectors")
"""Fields of the section `recommender` that say where files lie. The record of what reads them has
their contents instead (`inputs`)."""


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
    located: ClassVar[tuple[str, ...]] = ()
    """The fields of `LOCATED` that the network reads."""

    def __init__(self, config: RecommenderConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        self.loss_of_states = make_loss(config, num_items)
        self.trains_all_positions = config.positions != "newest"

    @classmethod
    def check(cls, config: RecommenderConfig) -> None:
        """Refuse impossible values of settings that only this network reads (ValueError)."""

    @classmethod
    def open(cls, config: RecommenderConfig) -> None:
        """Look at what the network reads besides the prepared tables, before the first long stage.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: It cannot be used.
        """

    @classmethod
    def inputs(cls, config: RecommenderConfig, checksums: Checksums) -> dict[str, str]:
        """What the network reads besides the prepared tables: a checksum for each, by name.

        Raises:
            FileNotFoundError: It is not there.
        """
        return {}

    def prepare(self, data: PreparedData) -> None:
        """Take from the tables what a new network needs besides histories, once, for good.

        Raises:
            ValueError: It cannot be used.
        """

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
        """The representation after each item, unless `recommender.positions` is `newest`.

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


class VectorSource(ABC):
    """Vectors that this run does not train: of users in their windows, and of items.

    As of a network, the dot product of both is the score. Subclasses are built as `cls(config)`,
    and are listed in `recipes/recommenders/__init__.py`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """Description in one line, for `python -m recipes list`."""
    about: ClassVar[About]
    version: ClassVar[int] = 1
    """Raised when the same settings and files begin to give other vectors."""
    settings: ClassVar[tuple[str, ...]]
    """Fields of the section `recommender` that the source reads, and that an arm may set. They say
    where the vectors come from; `inputs` says what is there."""
    is_common: ClassVar[bool] = False
    """Whether vectors follow from titles alone, so that they mean the same in every dataset."""
    reads_history: ClassVar[bool] = True
    """Whether a user's vector is made from the history alone, so that an empty one's means nothing.
    """

    def __init__(self, config: RecommenderConfig) -> None:
        self.config = config

    @abstractmethod
    def check(self) -> None:
        """Refuse settings that are missing or impossible, before anything is read.

        Raises:
            ValueError: The message names the field, its value and the remedy.
            FileNotFoundError: A file is not there.
        """

    @abstractmethod
    def inputs(self, checksums: Checksums) -> dict[str, str]:
        """What the vectors come from, besides the prepared tables: a checksum for each, by name.

        Raises:
            FileNotFoundError: It is not there.
        """

    @property
    @abstractmethod
    def width(self) -> int:
        """Dimension d of the vectors, which is known before these are made.

        Raises:
            ValueError: What the vectors come from cannot be read, or users and items differ in it.
        """

    @abstractmethod
    def vectors(
        self, data: PreparedData, prepared: Path
    ) -> tuple[Mapping[SplitName, Tensor], Tensor]:
        """The vectors.

        Args:
            data: The prepared tables as arrays.
            prepared: The folder of these tables.

        Returns:
            By split float32 [rows, d], of which row i belongs to the split's row i; and float32
            [num_items, d], by item id. All values are finite.

        Raises:
            ValueError: A vector is missing or cannot be used.
        """


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
            float64 [n, c], an array of their own; higher is better.
        """


AnyRecommender = type[SequenceRecommender] | type[VectorSource] | type[Counter]
