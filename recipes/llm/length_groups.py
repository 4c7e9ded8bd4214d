"""The order of training samples: random, but in batches of similar length."""

from collections.abc import Callable, Iterator

import numpy as np
from accelerate.data_loader import SeedableRandomSampler
from numpy.typing import NDArray
from torch.utils.data import Sampler

GROUPED = 50
"""Number of batches that are drawn together, and whose samples are then regrouped by length."""


class LengthGroups(Sampler[int]):
    """Regroups a random order by length, so that batches need little padding.

    If all samples have the same length, the order does not change. Sample i of epoch e is yielded
    as the number `e * n + i`, since a sample's prompt may differ between epochs.

    Args:
        order: The random order.
        lengths: Epoch -> int64 [n], number of tokens in each sample.
        batch_size: Number of samples in an optimiser step.
    """

    def __init__(
        self,
        order: SeedableRandomSampler,
        lengths: Callable[[int], NDArray[np.int64]],
        batch_size: int,
    ) -> None:
        self.order = order
        self.lengths = lengths
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, as accelerate does; it determines the order, so training can resume."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        epoch = self.order.epoch
        drawn, lengths = np.fromiter(self.order, np.int64), self.lengths(epoch)
        for start in range(0, len(drawn), GROUPED * self.batch_size):
            part = drawn[start : start + GROUPED * self.batch_size]
            yield from (self._grouped(part, lengths) + epoch * len(drawn)).tolist()

    def _grouped(self, drawn: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        places = np.argsort(lengths[drawn], kind="stable")
        whole = len(drawn) - len(drawn) % self.batch_size
        batches = places[:whole].reshape(-1, self.batch_size)
        # A batch takes the place of its earliest sample in the random order, so that batches of
        # long and of short samples are mixed.
        batches = batches[batches.min(axis=1).argsort()]
        return drawn[np.concatenate([batches.ravel(), places[whole:]])]
