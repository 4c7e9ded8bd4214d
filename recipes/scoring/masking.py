"""Masking of items that a user has met before, where all items are ranked."""

from dataclasses import dataclass

import numpy as np

from recipes.data.tables import PreparedData
from recipes.scoring.arrays import Ints
from recipes.scoring.rows import EvaluatedRows


@dataclass(frozen=True)
class Masked:
    """The items to mask, as m pairs of an evaluated row and an item, without the row's target."""

    rows: Ints
    """int64 [m], ascending indices of evaluated rows."""
    items: Ints
    """int64 [m], item ids; within a row ascending and distinct."""

    @classmethod
    def nothing(cls) -> "Masked":
        """No pairs."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    @classmethod
    def history(cls, data: PreparedData, evaluated: EvaluatedRows) -> "Masked":
        """All earlier items of each row's user, those that the history no longer shows included."""
        items, lengths = data.earlier(evaluated.split, evaluated.rows)
        rows = np.repeat(np.arange(len(evaluated)), lengths)
        kept = items != evaluated.targets[rows]
        # A pair (row, item) is the number row * num_items + item.
        pairs = np.unique(rows[kept] * data.num_items + items[kept])
        return cls(*np.divmod(pairs, data.num_items))

    def of(self, start: int, stop: int) -> "Masked":
        """The pairs of the rows start .. stop-1, whose indices then count from 0."""
        first, last = np.searchsorted(self.rows, [start, stop])
        return Masked(self.rows[first:last] - start, self.items[first:last])

    def counts(self, num_rows: int) -> Ints:
        """Number of masked items of each row: int64 [num_rows]."""
        return np.bincount(self.rows, minlength=num_rows).astype(np.int64)
