"""Stage `prepare`: raw files -> interactions, items, examples and frozen candidates."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recipes.artifacts import write_json, write_parts, write_table
from recipes.checksums import Checksums
from recipes.cores import usable_cores
from recipes.data.candidates import BLOCK, CandidateStream, TooFewItemsError
from recipes.data.core import core_of
from recipes.data.notes import NEGATIVES, Negatives, notes
from recipes.data.order import TieRule, in_order, tie_counts, times
from recipes.data.redraw import RULE
from recipes.data.sequences import (
    GivenWindows,
    Windows,
    given_windows,
    sliding_windows,
)
from recipes.data.splits import SPLITS, TRAIN, assign_splits, left_out_by_ties
from recipes.data.tables import CANDIDATES, DRAW, INTERACTIONS, MANIFEST, UNDRAWN
from recipes.datasets import DATASETS
from recipes.datasets.dataset import Interactions, ReadyWindows
from recipes.datasets.ordering import run_starts
from recipes.experiment import PrepareConfig
from recipes.ranges import check_ranges
from recipes.records import Record, Stage
from recipes.stages import run_stage

VERSION = 3
"""Version of this stage, see `Record`. Raise it also when a dataset is read differently."""
SHARE_SEED = 0
"""Random seed of the order in which `train_share` drops users."""
REFERENCE_HISTORY = 3
"""The shortest history that the reference trains and evaluates on; counted in the manifest."""
DRAWING = 4
"""Threads that draw candidates, at most; each needs a few MiB."""
WRITTEN_AT_ONCE = 2**20
"""Rows of a table written at once, so that memory never holds all histories or candidates."""


def prepare(config: PrepareConfig, folder: Path, checksums: Checksums) -> Record:
    """Run the stage, unless `folder` holds its result already.

    Writes items.parquet, examples.parquet, candidates.parquet (all splits; left out where a row
    leaves too few items to draw from, which a ranking of all items does not need), manifest.json
    (checksums of the raw files, counts, config), unless the dataset gives ready windows
    interactions.parquet, and where the source has ids of its own for users, users.parquet.

    Args:
        config: The stage's configuration.
        folder: The stage's folder, into which the files are written.
        checksums: Computes the raw files' checksums; the stage runs again when these change.

    Raises:
        FileNotFoundError: Raw files are missing; the message names them and the remedy.
        ValueError: A setting is out of range, or a raw file is not the official one.
    """
    check_config(config)
    dataset = DATASETS[config.dataset]
    source = None if config.source is None else Path(config.source).expanduser()
    files = dataset.raw_files(source)
    found = checksums.of_files(files)

    def work(place: Path) -> None:
        read = dataset.read(config, files)
        _write(config, place, read, found)

    return run_stage(prepare_stage(config, found), folder, work)


def prepare_stage(config: PrepareConfig, checksums: Mapping[str, str]) -> Stage:
    """The stage as a record describes it: everything that determines the tables.

    Args:
        config: The stage's configuration. `source` is left out, as the files' location does not
            matter.
        checksums: SHA-256 of the raw files, by name.
    """
    settings = asdict(config)
    del settings["source"]
    return Stage("prepare", settings, checksums, VERSION)


def check_config(config: PrepareConfig) -> None:
    """Refuse impossible values before anything is read.

    Raises:
        ValueError: A value is impossible; the message names the field and the remedy.
    """
    check_ranges(config, "prepare.")
    DATASETS[config.dataset].check(config)


def _write(
    config: PrepareConfig,
    folder: Path,
    read: Interactions | ReadyWindows,
    checksums: Mapping[str, str],
) -> None:
    ties: dict[str, Any] | None = None
    if isinstance(read, Interactions):
        read = read if config.core is None else core_of(read, config.core)
        rule = _tie_rule(config, read)
        interactions = in_order(read, rule or "stable", config.tie_seed)
        interactions = assign_splits(interactions, config.protocol, config.holdout)
        interactions = _kept(interactions, config)
        left_out = left_out_by_ties(interactions) if rule == "drop" else None
        windows = sliding_windows(interactions, config.max_history, left_out)
        _refuse_empty_splits(config, windows)
        if rule is not None:
            seed = config.tie_seed if rule == "random" else None
            ties = {"rule": rule, "seed": seed} | asdict(tie_counts(interactions))
        write_parts(folder / INTERACTIONS, _interactions(interactions))
        _write_users(folder, interactions, read.user_keys)
        keys, own = read.item_keys, read.notes
    else:
        windows = given_windows(_kept_windows(read, config), config.max_history)
        keys, own = None, ()
    recurring = _recurring(windows)
    negatives = config.negatives or ("catalogue" if recurring else "visible")
    columns = {"item_id": np.arange(len(read.titles)), "title": read.titles}
    write_table(folder / "items.parquet", _keyed(columns, keys))
    write_parts(folder / "examples.parquet", _examples(windows))
    undrawn = _write_candidates(config, folder, windows, len(read.titles), negatives)
    manifest = {
        "dataset": config.dataset,
        "protocol": config.protocol,
        "raw_sha256": checksums,
        "ties": ties,
        "negatives": NEGATIVES[negatives],
        RULE: negatives,
        "notes": [*own, *notes(config, ties, negatives, recurring, undrawn)],
        "counts": _counts(windows, read.titles),
        "config": asdict(config),
    }
    write_json(folder / MANIFEST, manifest | ({} if undrawn is None else {UNDRAWN: undrawn}))


def _tie_rule(config: PrepareConfig, read: Interactions) -> TieRule | None:
    """The rule for equal times; None where the order does not come from times."""
    own = "position" in read.table
    if not own and times(read.table) is not None:
        return config.ties or DATASETS[config.dataset].ties
    if config.ties is not None:
        why = "an order of their own" if own else "no times, and keep the order of the file"
        raise ValueError(
            f"prepare.ties={config.ties!r}: the interactions of {config.dataset} have {why}; "
            "leave it out"
        )
    return None


def _refuse_empty_splits(config: PrepareConfig, windows: Windows) -> None:
    used = windows.splits[windows.splits >= 0]
    for name, count in zip(SPLITS, np.bincount(used, minlength=len(SPLITS)), strict=True):
        if not count:
            raise ValueError(
                f"prepare.ties={config.ties!r} leaves no window of {name}, as every target shares "
                "its time: choose another rule, such as prepare.ties=random"
            )


def _write_users(folder: Path, interactions: pd.DataFrame, keys: list[str] | None) -> None:
    """Write users.parquet, where the source has ids of its own for the users."""
    if keys is not None:
        users = np.unique(interactions["user_id"].to_numpy())
        table = pd.DataFrame({"user_id": users, "key": [keys[user] for user in users]})
        write_table(folder / "users.parquet", table)


def _keyed(columns: dict[str, Any], keys: list[str] | None) -> pd.DataFrame:
    """A table with the column `key`, where there are keys."""
    return pd.DataFrame(columns if keys is None else columns | {"key": keys})


def _kept(interactions: pd.DataFrame, config: PrepareConfig) -> pd.DataFrame:
    """The interactions, without those of the train users that `train_share` drops."""
    if config.train_share == 1:
        return interactions
    return interactions.loc[_kept_rows(interactions, config)]


def _kept_windows(ready: ReadyWindows, config: PrepareConfig) -> ReadyWindows:
    if config.train_share == 1:
        return ready
    return replace(ready, table=ready.table.loc[_kept_rows(ready.table, config)])


def _kept_rows(table: pd.DataFrame, config: PrepareConfig) -> np.ndarray:
    """Which rows `train_share` keeps: bool [n].

    The users kept at a smaller share are a subset of those kept at a larger one.
    """
    train = table["split"].to_numpy() == "train"
    users = table["user_id"].to_numpy()
    known = np.unique(users[train])
    order = np.random.default_rng(SHARE_SEED).permutation(len(known))
    dropped = known[order[max(1, round(config.train_share * len(known))) :]]
    return ~(train & np.isin(users, dropped))


def _recurring(windows: Windows) -> bool:
    """Whether any user interacts with an item twice."""
    starts = run_starts(windows.table["user_id"].to_numpy())
    users = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(windows.targets)))
    met = users * (windows.targets.max(initial=0) + 1) + windows.targets
    met.sort()
    if (met[1:] == met[:-1]).any():
        return True
    # Ready windows may be incomplete: an earlier occurrence of the target may then appear only in
    # a history, not as the target of another window.
    return isinstance(windows, GivenWindows) and any(
        (windows.cut(np.arange(rows.start, rows.stop)) == windows.targets[rows, None]).any()
        for rows in _parts(len(windows.targets))
    )


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, WRITTEN_AT_ONCE):
        yield slice(start, min(start + WRITTEN_AT_ONCE, count))


def _interactions(interactions: pd.DataFrame) -> Iterator[pa.Table]:
    # A dataset without timestamps has a column of nulls, which only the nullable type can hold.
    row = {"user_id": 0, "item_id": 0, "position": 0, "split": "", "timestamp": pd.NA}
    schema = _schema(row, {"timestamp": "Int64"})
    for rows in _parts(len(interactions)):
        part = interactions.iloc[rows]
        values = {name: part[name].to_numpy() for name in ("user_id", "item_id", "position")}
        values["split"] = _names(part["split"].cat.codes.to_numpy())
        values["timestamp"] = pa.array(part["timestamp"].astype("Int64"))
        yield pa.table(values, schema)


def _examples(windows: Windows) -> Iterator[pa.Table]:
    ids, row = np.zeros(1, np.int64), {"split": "", "row": 0, "user_id": 0}
    schema = _schema(row | {"history": ids, "target": 0, "is_last": False})
    for rows in _parts(len(windows.targets)):
        part = windows.table.iloc[rows]
        values = {
            "split": _names(windows.splits[rows]),
            "row": part["row"].to_numpy(),
            "user_id": part["user_id"].to_numpy(),
            "history": _lists(windows.items(rows), windows.lengths[rows]),
            "target": windows.targets[rows],
            "is_last": part["is_last"].to_numpy(),
        }
        yield _used(pa.table(values, schema), windows.splits[rows])


def _write_candidates(
    config: PrepareConfig, folder: Path, windows: Windows, num_items: int, negatives: Negatives
) -> str | None:
    """Write candidates.parquet; where a row leaves too few items, says so in place of it."""
    try:
        write_parts(folder / CANDIDATES, _candidates(config, windows, num_items, negatives))
    except TooFewItemsError as error:
        print(f"[prepare] no candidates are drawn: {error}", flush=True)
        return str(error)
    return None


def _candidates(
    config: PrepareConfig, windows: Windows, num_items: int, negatives: Negatives
) -> Iterator[pa.Table]:
    """Columns split, row, candidates, seed, and draw where a row has several.

    The first draw has one row for each example, in the examples' order; the further ones follow,
    each with a row for each example of validation and test.
    """
    size, seed, several = config.num_candidates, config.candidate_seed, config.candidate_draws > 1
    row = {"split": "", "row": 0, "candidates": np.zeros(1, np.int64), "seed": 0}
    schema = _schema(row | ({DRAW: 0} if several else {}))
    with ThreadPoolExecutor(min(DRAWING, usable_cores())) as threads:
        for number in range(config.candidate_draws):
            streams = [CandidateStream(num_items, size, seed, split, number) for split in SPLITS]
            for rows in _parts(len(windows.targets)):
                codes = windows.splits[rows]
                if number:
                    codes = np.where(codes == TRAIN, np.int8(-1), codes)
                    if (codes < 0).all():
                        continue
                drawn = _drawn(windows, rows, codes, streams, negatives, threads)
                values = {
                    "split": _names(codes),
                    "row": windows.table["row"].to_numpy()[rows],
                    "candidates": _lists(drawn.ravel(), np.full(len(drawn), size)),
                    "seed": np.full(len(drawn), seed),
                }
                values |= {DRAW: np.full(len(drawn), number)} if several else {}
                yield _used(pa.table(values, schema), codes)


def _drawn(
    windows: Windows,
    rows: slice,
    codes: np.ndarray,
    streams: list[CandidateStream],
    negatives: Negatives,
    threads: ThreadPoolExecutor,
) -> np.ndarray:
    """The candidates of a slice of rows: int64 [n, c]; rows of code -1, without a split, have none.

    Args:
        windows: All windows.
        rows: The slice.
        codes: int8 [n], split of each row of the slice, as an index into `SPLITS`.
        streams: The stream of each split.
        negatives: Which items of the user are no negatives.
        threads: The threads that draw.
    """
    targets, numbers = windows.targets[rows], windows.table["row"].to_numpy()[rows]
    drawn = np.zeros((len(targets), streams[0].num_candidates), np.int64)

    def draw(stream: CandidateStream, at: np.ndarray) -> None:
        excluded = _excluded(windows, rows.start + at, negatives)
        drawn[at] = stream.draw(excluded, targets[at], int(numbers[at[0]]))

    blocks = [
        (stream, own[start : start + BLOCK])
        for code, stream in enumerate(streams)
        for own in [np.flatnonzero(codes == code)]
        for start in range(0, len(own), BLOCK)
    ]
    for _ in threads.map(draw, *zip(*blocks, strict=True)):
        pass
    return drawn


def _excluded(windows: Windows, rows: np.ndarray, negatives: Negatives) -> np.ndarray:
    """The items that are no negatives of some rows, besides the target: int64 [m, width]."""
    if negatives == "catalogue":
        return np.empty((len(rows), 0), np.int64)
    return windows.whole(rows) if negatives == "whole" else windows.cut(rows)


def _used(part: pa.Table, codes: np.ndarray) -> pa.Table:
    """The rows of a part that are in a split."""
    used = codes >= 0
    return part if used.all() else part.filter(pa.array(used))


def _schema(row: Mapping[str, Any], types: Mapping[str, str] | None = None) -> pa.Schema:
    """The schema that pandas would write for such a row, so that it reads the same types back."""
    example = pd.DataFrame({name: [value] for name, value in row.items()}).astype(dict(types or {}))
    return pa.Schema.from_pandas(example, preserve_index=False)


def _names(codes: np.ndarray) -> pa.Array:
    """Names of splits; any name for rows without a split."""
    return pa.DictionaryArray.from_arrays(codes.clip(0), list(SPLITS)).cast(pa.large_string())


def _lists(values: np.ndarray, lengths: np.ndarray) -> pa.Array:
    offsets = np.append(0, lengths.cumsum()).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)


def _counts(windows: Windows, titles: list[str]) -> dict[str, Any]:
    reference = windows.lengths >= REFERENCE_HISTORY
    last = windows.table["is_last"].to_numpy()
    trained = np.bincount(windows.targets[windows.splits == SPLITS.index("train")])
    return {
        "interactions": len(windows.targets),
        "items": len(titles),
        "items_absent_from_train": len(titles) - int(np.count_nonzero(trained)),
        "duplicate_titles": int(pd.Series(titles).str.lower().duplicated().sum()),
        "all_users": len(np.unique(windows.table["user_id"].to_numpy()[windows.splits >= 0])),
        "users": _by_split(windows, last),
        "windows": _by_split(windows, np.ones_like(last)),
        "windows_with_history_of_3": _by_split(windows, reference),
        "last_windows_with_history_of_3": _by_split(windows, reference & last),
    }


def _by_split(windows: Windows, selected: np.ndarray) -> dict[str, int]:
    codes = windows.splits[selected]
    counts = np.bincount(codes[codes >= 0], minlength=len(SPLITS))
    return {split: int(count) for split, count in zip(SPLITS, counts, strict=True)}
