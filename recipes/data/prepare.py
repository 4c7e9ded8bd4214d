"""Stage `prepare`: raw files -> interactions, items, examples and frozen candidates."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recipes.artifacts import Record, run_stage, write_json, write_table
from recipes.data.candidates import check_draw, draw_candidates
from recipes.data.ragged import PADDING
from recipes.data.sequences import Windows, sliding_windows
from recipes.data.splits import SPLITS, assign_splits
from recipes.experiment import PrepareConfig

REFERENCE_HISTORY = 3
"""The shortest history that the reference trains and evaluates on; counted in the manifest."""


def prepare(config: PrepareConfig, folder: Path) -> Record:
    """Run the stage, unless `folder` holds its result already.

    Writes interactions.parquet, items.parquet, examples.parquet, candidates.parquet (all splits)
    and manifest.json (checksums of the raw files, counts, config).

    Raises:
        FileNotFoundError: Raw files are missing; the message names them and the remedy.
        ValueError: A setting is out of range, or a raw file is not the official one.
    """
    check_config(config)
    return run_stage("prepare", folder, config, {}, lambda: _write(config, folder))


def check_config(config: PrepareConfig) -> None:
    """Refuse impossible values before anything is read.

    Raises:
        ValueError: Which field, its value and the remedy.
    """
    check_draw(config.num_candidates, config.candidate_seed)
    if config.max_history < 1:
        raise ValueError(f"max_history={config.max_history}: choose 1 or more")


def _write(config: PrepareConfig, folder: Path) -> None:
    interactions, titles, checksums = _read(config)
    windows = sliding_windows(interactions, config.max_history)
    recurring = bool(interactions.duplicated(["user_id", "item_id"]).any())
    candidates = _candidates(config, windows, len(titles), recurring)
    write_table(folder / "interactions.parquet", interactions)
    items = pd.DataFrame({"item_id": np.arange(len(titles)), "title": titles})
    write_table(folder / "items.parquet", items)
    write_table(folder / "examples.parquet", windows.examples())
    write_table(folder / "candidates.parquet", candidates)
    manifest = {
        "dataset": config.dataset,
        "protocol": config.protocol,
        "raw_sha256": checksums,
        "negatives": "all items but the target" + ("" if recurring else " and the visible history"),
        "counts": _counts(interactions, windows, titles),
        "config": asdict(config),
    }
    write_json(folder / "manifest.json", manifest)


def _read(config: PrepareConfig) -> tuple[pd.DataFrame, list[str], dict[str, str]]:
    """The dataset's interactions (with their split), titles and raw checksums."""
    source = None if config.source is None else Path(config.source).expanduser()
    if config.dataset == "lastfm":
        from recipes.data import lastfm

        interactions, titles, checksums = lastfm.read(config, source)
    else:
        from recipes.data import synthetic

        interactions, titles, checksums = synthetic.read(config, source)
        interactions = assign_splits(interactions)
    columns = ["user_id", "item_id", "position", "split", "timestamp"]
    table = pd.DataFrame(interactions, columns=columns)
    # A dataset without timestamps has a column of nulls, which only the nullable type can hold.
    table["timestamp"] = table["timestamp"].astype("Int64")
    return table, titles, checksums


def _candidates(
    config: PrepareConfig, windows: Windows, num_items: int, recurring: bool
) -> pd.DataFrame:
    """Columns split, row, candidates, seed; one row an example, in the examples' order."""
    tables = []
    for split in SPLITS:
        rows = (windows.table["split"] == split).to_numpy()
        histories = windows.histories[rows]
        # Where items recur, leaving the history out would mark every candidate from it as target.
        excluded = histories[:, :0] if recurring else histories
        drawn = draw_candidates(
            excluded,
            windows.targets[rows],
            num_items,
            config.num_candidates,
            config.candidate_seed,
            split,
        )
        table = windows.table.loc[rows, ["split", "row"]]
        tables.append(
            table.assign(
                candidates=pd.Series(list(drawn), index=table.index, dtype=object),
                seed=config.candidate_seed,
            )
        )
    return pd.concat(tables, ignore_index=True)


def _counts(interactions: pd.DataFrame, windows: Windows, titles: list[str]) -> dict[str, Any]:
    lengths = (windows.histories != PADDING).sum(axis=1)
    reference = lengths >= REFERENCE_HISTORY
    last = windows.table["is_last"].to_numpy()
    trained = interactions.loc[interactions["split"] == "train", "item_id"].nunique()
    return {
        "interactions": len(interactions),
        "items": len(titles),
        "items_absent_from_train": len(titles) - trained,
        "duplicate_titles": int(pd.Series(titles).str.lower().duplicated().sum()),
        "users": _by_split(windows, last),
        "windows": _by_split(windows, np.ones_like(last)),
        "windows_with_history_of_3": _by_split(windows, reference),
        "last_windows_with_history_of_3": _by_split(windows, reference & last),
    }


def _by_split(windows: Windows, selected: np.ndarray) -> dict[str, int]:
    counts = windows.table.loc[selected, "split"].value_counts()
    return {split: int(counts.get(split, 0)) for split in SPLITS}
