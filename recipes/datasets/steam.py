"""Steam, as LLaRA published it: windows of games that users reviewed, already cut and split.

LLaRA drew a third of the users and games at random, and the draw is not published. So these
windows cannot be rebuilt from the reviews (`steam_reviews.py` makes others by the same rules); they
are read from Parquet files made of LLaRA's pickles:

- `examples.parquet`: columns split (`train`, `val`, `test`), history (item ids, oldest first) and
  target. A row whose split begins with `train_sample` counts as one of `train`.
- `items.parquet`: columns item_id (0, 1, 2, ..) and title, or title_full beside title_llara, whose
  difference is one game: LLaRA's file of titles cuts it at its field separator, `::`. So does
  `prepare.titles: reference`.

LLaRA's windows do not name their users. A window that goes on where the one before it ends has the
same user; every validation and test window is a user of its own.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recipes.artifacts import read_table
from recipes.datasets.dataset import Dataset, ReadyWindows
from recipes.datasets.folders import folder_with
from recipes.experiment import PrepareConfig

EXAMPLES = "examples.parquet"
ITEMS = "items.parquet"
OFFICIAL_ROWS = {"train": 151_056, "val": 1_194, "test": 1_194}
"""Windows of each split; of `train` there may be a part."""
NUM_ITEMS = 3_581
"""Number of games; also the id by which LLaRA pads its histories."""
SEPARATOR = "::"
"""What LLaRA's file of titles puts between its fields."""
NAMES = {"train": "train_data.df", "val": "Val_data.df", "test": "Test_data.df"}
"""LLaRA's pickles."""
CONVERSION = (
    "python -c \"import pandas as p; p.concat([p.read_pickle(f)[['seq','next']]"
    ".set_axis(['history','target'],axis=1).assign(split=s) for s,f in "
    f"{NAMES!r}.items()]).to_parquet('{EXAMPLES}')\""
)
"""A command that makes `examples.parquet`, to be run where LLaRA's pickles are trusted."""


class Steam(Dataset):
    """The windows of games that LLaRA published."""

    name = "steam"
    summary = "Steam, LLaRA's windows of games; Parquet made of LLaRA's pickles, in --source"
    protocols = ("llara",)
    has_reference_titles = True

    def raw_files(self, source: Path | None) -> dict[str, Path]:
        """`examples.parquet` and `items.parquet`."""
        if source is None:
            raise FileNotFoundError(
                "prepare.source is missing: Steam is not downloaded, since LLaRA publishes "
                f"pickles, which are never loaded. Pass a folder with {EXAMPLES} and {ITEMS}; "
                f"where the pickles are trusted, this makes the first: {CONVERSION}"
            )
        folder = folder_with(source, (EXAMPLES, ITEMS))
        return {name: _existing(folder, name) for name in (EXAMPLES, ITEMS)}

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> ReadyWindows:
        """Read the tables.

        Returns:
            Windows; users are numbered in the order of their windows.

        Raises:
            ValueError: A table lacks a column, or does not hold LLaRA's rows.
        """
        titles = _titles(files[ITEMS], config.titles == "reference")
        path = files[EXAMPLES]
        table = _columns(path, ("split", "history", "target"))
        split = table["split"].astype(str).str.replace(r"^train_sample.*", "train", regex=True)
        _check_rows(path, split)
        order = np.concatenate([np.flatnonzero(split == name) for name in OFFICIAL_ROWS])
        histories = [_without_padding(history) for history in table["history"].take(order)]
        targets = table["target"].to_numpy(np.int64)[order]
        split = split.to_numpy()[order]
        first = _begins_a_user(split, histories, targets)
        windows = {
            "split": split,
            "user_id": first.cumsum() - 1,
            "history": histories,
            "target": targets,
            "is_last": np.append(first[1:], True),
        }
        return ReadyWindows(pd.DataFrame(windows), titles)

    def caveats(self, config: PrepareConfig) -> list[str]:
        """What LLaRA's windows leave open."""
        return [
            "LLaRA's Steam is a random third of users and games, whose draw is not published; its "
            "rows do not name their users, so train users are told by where windows join."
        ]


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    pickles = [one for one in NAMES.values() if (folder / one).is_file()]
    if pickles:
        raise ValueError(
            f"{folder / pickles[0]} is a pickle, which can run any code and is never loaded. "
            f"Where it is trusted, convert it and pass the result's folder: {CONVERSION}"
        )
    raise FileNotFoundError(
        f"{path} is missing: pass the folder that holds {EXAMPLES} and {ITEMS} as --source"
    )


def _columns(path: Path, names: tuple[str, ...]) -> pd.DataFrame:
    table = read_table(path)
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; it needs {', '.join(names)} and has "
            f"{', '.join(map(str, table.columns))}"
        )
    return table


def _titles(path: Path, reference: bool) -> list[str]:
    table = read_table(path)
    column = "title_full" if "title_full" in table.columns else "title"
    table = _columns(path, ("item_id", column)).sort_values("item_id")
    if not np.array_equal(table["item_id"].to_numpy(), np.arange(NUM_ITEMS)):
        raise ValueError(f"{path} does not hold LLaRA's games, item_id 0 .. {NUM_ITEMS - 1}")
    titles = table[column].astype(str)
    if reference:
        titles = titles.str.partition(SEPARATOR)[0].str.lower()
    return titles.str.strip().tolist()


def _check_rows(path: Path, split: pd.Series) -> None:
    unknown = sorted(set(split) - set(OFFICIAL_ROWS))
    if unknown:
        raise ValueError(f"{path} has rows of split {unknown[0]!r}: name splits train, val, test")
    for name, expected in OFFICIAL_ROWS.items():
        found = int((split == name).sum())
        complete = found == expected or (name == "train" and 0 < found < expected)
        if not complete:
            raise ValueError(
                f"{path} does not hold LLaRA's rows: {found} of {name}, where LLaRA has {expected}"
            )


def _without_padding(history: np.ndarray) -> np.ndarray:
    items = np.asarray(history, np.int64)
    return items[items != NUM_ITEMS]


def _begins_a_user(
    split: np.ndarray, histories: list[np.ndarray], targets: np.ndarray
) -> np.ndarray:
    """Whether each window is the first of a user: bool [n]."""
    first = np.ones(len(targets), np.bool_)
    for row in range(1, len(targets)):
        if split[row] == split[row - 1] == "train":
            before = np.append(histories[row - 1], targets[row - 1])
            now = histories[row]
            grown = len(now) in (len(before), len(before) - 1)
            first[row] = not (grown and len(now) and np.array_equal(now, before[-len(now) :]))
    return first
