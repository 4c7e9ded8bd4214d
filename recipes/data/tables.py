"""The prepared data as arrays: what every later stage reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recipes.artifacts import read_record, read_table
from recipes.data.ragged import PADDING, to_padded
from recipes.data.splits import SPLITS, SplitName


@dataclass(frozen=True)
class Split:
    """The n windows of a split; the row of a window is its index."""

    user_ids: np.ndarray
    """int64 [n]; a user's windows are adjacent, in order of position."""

    histories: np.ndarray
    """int64 [n, max_history], left-padded with -1: the newest item is in the last column."""

    history_lengths: np.ndarray
    """int64 [n]; 0 for a user's first window, whose history is empty."""

    targets: np.ndarray
    """int64 [n]."""

    candidates: np.ndarray
    """int64 [n, num_candidates], the target among them."""

    is_last: np.ndarray
    """bool [n]: the user's last window, the one that the paper evaluates."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class PreparedData:
    """What the stage `prepare` wrote."""

    titles: list[str]
    """By item id."""

    splits: dict[SplitName, Split]

    @property
    def num_items(self) -> int:
        return len(self.titles)

    def split(self, name: SplitName) -> Split:
        if name not in self.splits:
            raise ValueError(f"split={name!r}: choose one of {', '.join(SPLITS)}")
        return self.splits[name]

    @classmethod
    def load(cls, folder: Path) -> "PreparedData":
        """Read the stage's folder.

        Raises:
            FileNotFoundError: The stage has not been finished.
            ValueError: The tables do not belong together.
        """
        width = read_record(folder, "prepare").config["max_history"]
        items = read_table(folder / "items.parquet").sort_values("item_id")
        examples = read_table(folder / "examples.parquet")
        candidates = read_table(folder / "candidates.parquet")
        splits: dict[SplitName, Split] = {
            name: _split(name, examples, candidates, width) for name in SPLITS
        }
        return cls(items["title"].tolist(), splits)


def _split(name: SplitName, examples: pd.DataFrame, candidates: pd.DataFrame, width: int) -> Split:
    table, drawn = _rows(examples, name), _rows(candidates, name)
    rows = np.arange(len(table))
    if not (np.array_equal(table["row"], rows) and np.array_equal(drawn["row"], rows)):
        raise ValueError(
            f"examples.parquet and candidates.parquet do not have the same rows of {name}: delete "
            "the folder and run `python -m recipes prepare` again"
        )
    histories = to_padded(table["history"].tolist(), width)
    return Split(
        user_ids=table["user_id"].to_numpy(np.int64),
        histories=histories,
        history_lengths=(histories != PADDING).sum(axis=1),
        targets=table["target"].to_numpy(np.int64),
        candidates=np.stack(drawn["candidates"].tolist()).astype(np.int64),
        is_last=table["is_last"].to_numpy(np.bool_),
    )


def _rows(table: pd.DataFrame, split: SplitName) -> pd.DataFrame:
    """A table's rows of one split, in order."""
    selected = table.take(np.flatnonzero(table["split"].to_numpy() == split))
    return selected.take(selected["row"].to_numpy().argsort())
