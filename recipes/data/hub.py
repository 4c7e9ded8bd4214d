"""Prepared data as a `DatasetDict` of the library `datasets`, and back.

    to_dataset_dict(Path("runs/demo/prepare")).save_to_disk("demo")
    data = from_dataset_dict(load_from_disk("demo"))

The Parquet files of the stage `prepare` can also be read as they are:
`datasets.load_dataset("parquet", data_files="runs/demo/prepare/examples.parquet")`.
"""

from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value

from recipes.data.padding import PADDING, padded
from recipes.data.splits import SPLITS
from recipes.data.tables import PreparedData, Split

ITEMS = "items"
"""Name of the dataset of titles, beside `train`, `val` and `test`."""
ITEM = Value("int64")
WINDOWS = {
    "user_id": Value("int64"),
    "history": List(ITEM),
    "target": ITEM,
    "candidates": List(ITEM),
    "is_last": Value("bool"),
}
FURTHER = "further_candidates"


def to_dataset_dict(folder: Path) -> DatasetDict:
    """The prepared data in a folder, as datasets `train`, `val` and `test` of windows and `items`.

    Windows have the columns `user_id`, `history` (item ids, oldest first, without padding),
    `target` (item id), `candidates` (item ids), `is_last`, and `further_candidates` where several
    sets were drawn. Items have `item_id` and `title`.

    Args:
        folder: Folder of the stage `prepare`.

    Raises:
        FileNotFoundError: The stage has not been finished.
        ValueError: Its tables do not fit together.
    """
    data = PreparedData.load(folder)
    columns = {"item_id": np.arange(data.num_items), "title": data.titles}
    items = Dataset.from_dict(columns, Features({"item_id": ITEM, "title": Value("string")}))
    return DatasetDict({**{name: _windows(data.split(name)) for name in SPLITS}, ITEMS: items})


def from_dataset_dict(found: DatasetDict, max_history: int | None = None) -> PreparedData:
    """Prepared data from what `to_dataset_dict` has made.

    Args:
        found: Datasets `train`, `val`, `test` and `items`.
        max_history: Width of the histories; None takes the longest one's.

    Raises:
        ValueError: A dataset or a column is missing, items are not numbered 0, 1, 2, .., or a
            history is longer than `max_history`.
    """
    if missing := [name for name in (*SPLITS, ITEMS) if name not in found]:
        raise ValueError(f"the dataset {missing[0]!r} is missing: pass what to_dataset_dict made")
    for name in SPLITS:
        if absent := sorted(WINDOWS.keys() - set(found[name].column_names)):
            raise ValueError(f"the dataset {name!r} has no column {absent[0]!r}")
    items = found[ITEMS].with_format("numpy")
    if not np.array_equal(items["item_id"][:], np.arange(len(items))):
        raise ValueError("items must be numbered 0, 1, 2, .. in order: sort them by item_id")
    lists = {name: _lists(found[name], "history") for name in SPLITS}
    longest = max(int(lengths.max(initial=0)) for _, lengths in lists.values())
    width = longest if max_history is None else max_history
    titles = [str(title) for title in found[ITEMS]["title"][:]]
    return PreparedData(titles, {name: _split(found[name], *lists[name], width) for name in SPLITS})


def _windows(split: Split) -> Dataset:
    shown = split.histories != PADDING
    columns = {
        "user_id": split.user_ids,
        "history": [line[kept] for line, kept in zip(split.histories, shown, strict=True)],
        "target": split.targets,
        "candidates": list(split.candidates),
        "is_last": split.is_last,
    }
    features = dict(WINDOWS)
    if split.further_candidates is not None:
        columns[FURTHER] = [[list(draw) for draw in row] for row in split.further_candidates]
        features[FURTHER] = List(List(ITEM))
    return Dataset.from_dict(columns, Features(features))


def _split(windows: Dataset, items: np.ndarray, lengths: np.ndarray, width: int) -> Split:
    candidates, counts = _lists(windows, "candidates")
    whole = windows.with_format("numpy")
    further = None
    if FURTHER in windows.column_names:
        further = np.array(windows[FURTHER][:], np.int64)
    return Split(
        user_ids=np.asarray(whole["user_id"][:]),
        histories=padded(items, lengths, width),
        history_lengths=lengths,
        targets=np.asarray(whole["target"][:]),
        candidates=candidates.reshape(len(counts), -1),
        is_last=np.asarray(whole["is_last"][:]),
        further_candidates=further,
    )


def _lists(windows: Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists -> all values, one list after the other, and each list's length (int64)."""
    lists = windows[column][:]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter((item for one in lists for item in one), np.int64, lengths.sum()), lengths
