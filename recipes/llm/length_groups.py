"""The order of training: random, in batches of prompts of like length."""

from collections.abc import Iterator

import numpy as np
from accelerate.data_loader import SeedableRandomSampler
from numpy.typing import NDArray
from torch.utils.data import Sampler

GROUPED = 50
"""Batches that are drawn together and share out their prompts by length."""


class LengthGroups(Sampler[int]):
    """A random order whose batches have little padding; equally long prompts are left in place.

    Args:
        order: The random order.
        lengths: int64 [n], tokens of each sample.
        batch_size: Samples of an optimiser step.
    """

    def __init__(
        self, order: SeedableRandomSampler, lengths: NDArray[np.int64], batch_size: int
    ) -> None:
        self.order = order
        self.lengths = lengths
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate: an epoch's order follows from its number, so it can be resumed."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        drawn = np.fromiter(self.order, np.int64)
        for start in range(0, len(drawn), GROUPED * self.batch_size):
            yield from self._grouped(drawn[start : start + GROUPED * self.batch_size]).tolist()

    def _grouped(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        places = np.argsort(self.lengths[drawn], kind="stable")
        whole = len(drawn) - len(drawn) % self.batch_size
        batches = places[:whole].reshape(-1, self.batch_size)
        # A batch stands where its first sample was drawn, so that long and short ones alternate.
        batches = batches[batches.min(axis=1).argsort()]
        return drawn[np.concatenate([batches.ravel(), places[whole:]])]
