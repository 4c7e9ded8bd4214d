"""The prepared data as arrays: what every later stage reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.artifacts import read_json, read_table
from recipes.data.padding import PADDING, padded, ranges
from recipes.data.splits import SPLITS, SplitName, left_out_by_ties
from recipes.datasets.ordering import run_starts
from recipes.records import read_record

INTERACTIONS = "interactions.parquet"
CANDIDATES = "candidates.parquet"
MANIFEST = "manifest.json"
UNDRAWN = "undrawn"
"""Key of the manifest that tells why no candidates were drawn; absent if they were."""
DRAW = "draw"
"""Column of candidates.parquet, where several were drawn for a row; from 0."""


@dataclass(frozen=True)
class Split:
    """The n windows of a split; a window's row number is its index in every array."""

    user_ids: np.ndarray
    """int64 [n]; a user's windows are adjacent, in order of position."""

    histories: np.ndarray
    """int64 [n, max_history], left-padded with -1: the newest item is in the last column."""

    history_lengths: np.ndarray
    """int64 [n]; 0 for a user's first window, whose history is empty."""

    targets: np.ndarray
    """int64 [n], item ids."""

    candidates: np.ndarray
    """int64 [n, num_candidates], item ids, the target among them; [n, 0] if none were drawn."""

    is_last: np.ndarray
    """bool [n]: the user's last window of the split, the one that the paper evaluates."""

    further_candidates: np.ndarray | None = None
    """int64 [n, candidate_draws - 1, num_candidates], what was drawn after `candidates`; None in
    `train`, and where `prepare.candidate_draws` is 1."""

    def __len__(self) -> int:
        return len(self.targets)


def joined(splits: Sequence[Split]) -> Split:
    """The windows of several splits, one split after the other, without further candidates."""
    if len(splits) == 1:
        return splits[0]
    names = ("user_ids", "histories", "history_lengths", "targets", "candidates", "is_last")
    return Split(**{name: np.concatenate([getattr(one, name) for one in splits]) for name in names})


@dataclass(frozen=True)
class PreparedData:
    """The tables of the stage `prepare`."""

    titles: list[str]
    """Title of each item, by item id."""

    splits: dict[SplitName, Split]

    folder: Path | None = None
    """The stage's folder; None of tables that were made in memory."""

    undrawn: str | None = None
    """Why there are no candidates; None if there are."""

    @property
    def num_items(self) -> int:
        return len(self.titles)

    def split(self, name: SplitName) -> Split:
        if name not in self.splits:
            raise ValueError(f"split={name!r}: choose one of {', '.join(SPLITS)}")
        return self.splits[name]

    def earlier(self, split: SplitName, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items that the user of a row has met before the row's target, in whatever split.

        Where the tables hold windows alone, these are the targets of the user's earlier windows,
        those of an earlier split included, and the visible history, so an item may appear twice.

        Args:
            split: Name of the split.
            rows: Integers [m], row numbers.

        Returns:
            int64 [sum of lengths], item ids, one row's after the other's, oldest first; and int64
            [m], the lengths.
        """
        own = self.split(split)
        if self._sequences is not None:
            items, places, firsts, _ = self._sequences
            at = places[split][rows]
            return _stretches(items, firsts[at], at)
        items, places, firsts = self._windows
        at = places[split][rows]
        targets, counts = _stretches(items, firsts[at], at)
        seen = own.histories[rows]
        lengths = own.history_lengths[rows]
        both = np.empty(len(targets) + int(lengths.sum()), np.int64)
        ends = (counts + lengths).cumsum()
        visible = np.zeros(len(both), np.bool_)
        visible[ranges(ends - lengths, ends)] = True
        both[visible], both[~visible] = seen[seen != PADDING], targets
        return both, counts + lengths

    def positions(self, split: SplitName) -> np.ndarray | None:
        """The place of each row's target among all items of its user, from 0: int64 [n].

        None where the tables hold windows alone, which do not tell.
        """
        if self._sequences is None:
            return None
        _, places, firsts, _ = self._sequences
        return places[split] - firsts[places[split]]

    def whole(self, split: SplitName, rows: np.ndarray) -> np.ndarray:
        """All items that the users of some rows ever meet: int64 [m, width], left-padded with -1.

        Raises:
            ValueError: The tables hold windows alone, which do not tell.
        """
        if self._sequences is None:
            raise ValueError("these tables hold windows alone, not all that a user meets")
        items, places, firsts, ends = self._sequences
        at = places[split][rows]
        met, lengths = _stretches(items, firsts[at], ends[at])
        return padded(met, lengths, int(lengths.max(initial=0)))

    @cached_property
    def _sequences(
        self,
    ) -> tuple[np.ndarray, dict[SplitName, np.ndarray], np.ndarray, np.ndarray] | None:
        """All users' items in order; each split's rows as places among them; and, by place, where
        the user's items begin and end. None where the tables hold windows alone.
        """
        path = None if self.folder is None else self.folder / INTERACTIONS
        if path is None or not path.is_file():
            return None
        table = read_table(path)
        users = table["user_id"].to_numpy()
        starts = run_starts(users)
        counts = np.diff(starts, append=len(users))
        firsts = np.repeat(starts, counts)
        codes = pd.Categorical(table["split"], categories=list(SPLITS)).codes
        if len(table) > sum(map(len, self.splits.values())):
            codes = np.where(left_out_by_ties(table), -1, codes)
        places: dict[SplitName, np.ndarray] = {
            name: np.flatnonzero(codes == code) for code, name in enumerate(SPLITS)
        }
        return table["item_id"].to_numpy(), places, firsts, firsts + np.repeat(counts, counts)

    @cached_property
    def _windows(self) -> tuple[np.ndarray, dict[SplitName, np.ndarray], np.ndarray]:
        """The targets of all windows, user by user, under each the splits in order; each split's
        rows as places among them; and, by place, where the user's windows begin.
        """
        names: list[SplitName] = [name for name in SPLITS if name in self.splits]
        users = np.concatenate([self.splits[name].user_ids for name in names])
        order = users.argsort(kind="stable")
        starts = run_starts(users[order])
        firsts = np.repeat(starts, np.diff(starts, append=len(users)))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        ends = np.cumsum([len(self.splits[name]) for name in names])
        parts = np.split(place, ends[:-1])
        places: dict[SplitName, np.ndarray] = dict(zip(names, parts, strict=True))
        return np.concatenate([self.splits[name].targets for name in names])[order], places, firsts

    @classmethod
    def load(cls, folder: Path) -> "PreparedData":
        """Read the stage's folder.

        Raises:
            FileNotFoundError: The stage has not been finished.
            ValueError: The tables of examples and candidates do not have the same rows.
        """
        width = read_record(folder, "prepare").config["max_history"]
        items = pq.read_table(folder / "items.parquet").sort_by("item_id")
        examples = pq.read_table(folder / "examples.parquet")
        undrawn = read_json(folder / MANIFEST).get(UNDRAWN)
        candidates = None if undrawn else pq.read_table(folder / CANDIDATES)
        splits: dict[SplitName, Split] = {
            name: _split(_rows(examples, name), _draws(candidates, name), name, width)
            for name in SPLITS
        }
        return cls(items["title"].to_pylist(), splits, folder, undrawn)


def _split(table: pa.Table, draws: list[pa.Table], name: SplitName, width: int) -> Split:
    rows = np.arange(len(table))
    if not all(np.array_equal(one["row"], rows) for one in (table, *draws)):
        raise ValueError(
            f"examples.parquet and candidates.parquet do not have the same rows of {name}: delete "
            "the folder and run `python -m recipes prepare` again"
        )
    items, lengths = _lists(table["history"])
    none = np.empty(0, np.int64)
    candidates, *further = [_lists(drawn["candidates"])[0] for drawn in draws] or [none]
    shape = len(table), len(candidates) // max(len(table), 1)
    return Split(
        user_ids=_numbers(table["user_id"]),
        histories=padded(items, lengths, width),
        history_lengths=lengths,
        targets=_numbers(table["target"]),
        candidates=candidates.reshape(shape),
        is_last=table["is_last"].to_numpy(),
        further_candidates=(
            np.stack([one.reshape(shape) for one in further], axis=1) if further else None
        ),
    )


def _stretches(
    values: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Stretches `values[start:end]`, one after the other, and their lengths (int64)."""
    return values[ranges(starts, ends)], ends - starts


def _draws(table: pa.Table | None, split: SplitName) -> list[pa.Table]:
    """The rows of one split of each draw of candidates, in order; none if there is no table."""
    if table is None:
        return []
    if DRAW not in table.column_names:
        return [_rows(table, split)]
    draws = table[DRAW].to_numpy()
    parts = [
        _rows(table.take(np.flatnonzero(draws == draw)), split)
        for draw in range(int(draws.max(initial=0)) + 1)
    ]
    return [part for draw, part in enumerate(parts) if draw == 0 or len(part)]


def _rows(table: pa.Table, split: SplitName) -> pa.Table:
    """A table's rows of one split, in order."""
    mine = np.flatnonzero(table["split"].to_numpy() == split)
    return table.take(mine).sort_by("row")


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.int64, copy=False)


def _lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists -> all values, one list after the other, and each list's length (int64)."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy().astype(np.int64, copy=False)
    return values, np.diff(lists.offsets.to_numpy().astype(np.int64))
