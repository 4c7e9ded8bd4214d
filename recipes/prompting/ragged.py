"""Rows of different length, stored in two flat arrays; they can be padded on the left."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """Integer rows of different length; row i is `values[offsets[i] : offsets[i + 1]]`.

    Values are int32 to save memory, which holds the token ids of a whole training split.
    """

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        values = np.fromiter((value for row in rows for value in row), np.int32, lengths.sum())
        return cls(values, _offsets(lengths))

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> list[int]:
        return self.values[self.offsets[index] : self.offsets[index + 1]].tolist()

    def take(self, rows: NDArray[np.integer]) -> "Ragged":
        """The given rows, in the given order; a row may be taken more than once."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        shift = self.offsets[:-1][rows] - offsets[:-1]
        return Ragged(self.values[np.repeat(shift, lengths) + np.arange(offsets[-1])], offsets)

    def replaced(self, rows: NDArray[np.integer], other: "Ragged") -> "Ragged":
        """The same rows, but that row `rows[i]` is row i of `other`."""
        offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        both = Ragged(np.concatenate([self.values, other.values]), offsets)
        order = np.arange(len(self))
        order[rows] = len(self) + np.arange(len(other))
        return both.take(order)

    def regrouped(self, lengths: NDArray[np.int64]) -> "Ragged":
        """Join adjacent rows: row i of the result joins the next `lengths[i]` rows of this one."""
        return Ragged(self.values, self.offsets[_offsets(lengths)])

    def right_aligned(self, width: int, fill: int) -> NDArray[np.int64]:
        """The rows as a matrix, int64 [rows, width], left-padded with `fill`."""
        padded = np.full((len(self), width), fill, dtype=np.int64)
        padded[np.arange(width) >= width - self.lengths[:, None]] = self.values
        return padded


def _offsets(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
