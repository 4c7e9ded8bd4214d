"""The prepared data as arrays: what every later stage reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.data.padding import padded
from recipes.data.splits import SPLITS, SplitName
from recipes.records import read_record


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
    """int64 [n, num_candidates], item ids, the target among them."""

    is_last: np.ndarray
    """bool [n]: the user's last window, the one that the paper evaluates."""

    further_candidates: np.ndarray | None = None
    """int64 [n, candidate_draws - 1, num_candidates], what was drawn after `candidates`; None in
    `train`, and where `prepare.candidate_draws` is 1."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class PreparedData:
    """The tables of the stage `prepare`."""

    titles: list[str]
    """Title of each item, by item id."""

    splits: dict[SplitName, Split]

    @property
    def num_items(self) -> int:
        return len(self.titles)

    def split(self, name: SplitName) -> Split:
        if name not in self.splits:
            raise ValueError(f"split={name!r}: choose one of {', '.join(SPLITS)}")
        return self.splits[name]

    def earlier(self, split: SplitName, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All items that the users of some rows have met before them, whatever the splits.

        Args:
            split: The rows' split.
            rows: int64 [n], row numbers.

        Returns:
            Each row's items, one row after the other (int64), and their number in each row (int64
            [n]): the targets of the user's earlier windows, and the visible history.
        """
        order: list[SplitName] = [one for one in SPLITS if one in self.splits]
        starts = dict(
            zip(order, np.cumsum([0, *(len(self.splits[s]) for s in order)]), strict=False)
        )
        users = np.concatenate([self.splits[one].user_ids for one in order])
        targets = np.concatenate([self.splits[one].targets for one in order])
        by_user = users.argsort(kind="stable")
        place = np.empty_like(by_user)
        place[by_user] = np.arange(len(by_user))
        at = place[rows + starts[split]]
        before = at - np.searchsorted(users[by_user], users[rows + starts[split]])
        histories = self.split(split).histories[rows]
        found = [
            np.append(targets[by_user[end - length : end]], history[history >= 0])
            for end, length, history in zip(at, before, histories, strict=True)
        ]
        lengths = np.array([len(one) for one in found], dtype=np.int64)
        return np.concatenate(found) if found else np.empty(0, np.int64), lengths

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
        candidates = pq.read_table(folder / "candidates.parquet")
        splits: dict[SplitName, Split] = {
            name: _split(_rows(examples, name), _rows(candidates, name), name, width)
            for name in SPLITS
        }
        return cls(items["title"].to_pylist(), splits)


def _split(table: pa.Table, drawn: pa.Table, name: SplitName, width: int) -> Split:
    rows = np.arange(len(table))
    if not (np.array_equal(table["row"], rows) and np.array_equal(drawn["row"], rows)):
        raise ValueError(
            f"examples.parquet and candidates.parquet do not have the same rows of {name}: delete "
            "the folder and run `python -m recipes prepare` again"
        )
    items, lengths = _lists(table["history"])
    candidates, counts = _lists(drawn["candidates"])
    return Split(
        user_ids=_numbers(table["user_id"]),
        histories=padded(items, lengths, width),
        history_lengths=lengths,
        targets=_numbers(table["target"]),
        candidates=candidates.reshape(len(counts), -1),
        is_last=table["is_last"].to_numpy(),
    )


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
