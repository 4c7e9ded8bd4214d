"""Your own data: any table of (user, item, time, title), as a file, a folder or a name.

1. Columns are those that `prepare.custom` names, or are guessed by well-known names (`sources/`).
2. Every row is read and checked; one that cannot be used ends the reading with its line. So a file
   is read as a whole or not at all.
3. `prepare.min_rating`, then `prepare.custom.repeats`.
4. Users and items are numbered in the order of their first rows. The stage `prepare` puts each
   user's rows in order of time, filters by `prepare.core` and splits.

What was guessed and taken for what is printed, and recorded in manifest.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recipes.datasets.dataset import Dataset, Interactions
from recipes.datasets.ordering import order_by, run_starts
from recipes.datasets.sources.columns import FILE_ORDER, Columns, chosen, title_columns
from recipes.datasets.sources.ids import Ids, ids
from recipes.datasets.sources.opening import files_of, open_source
from recipes.datasets.sources.ratings import ratings
from recipes.datasets.sources.source import Column, Source, shown
from recipes.datasets.sources.times import milliseconds
from recipes.datasets.sources.titles import titles
from recipes.experiment import CustomConfig, PrepareConfig


class Custom(Dataset):
    """A file of interactions that the user names."""

    name = "custom"
    summary = "your own data: a CSV, TSV, JSON lines or Parquet file, or what `datasets` reads"
    has_ratings = True

    def check(self, config: PrepareConfig) -> None:
        """Refuse an unknown encoding, and a cut in time where there are no times."""
        super().check(config)
        own = config.custom
        try:
            "".encode(own.encoding)
        except (LookupError, UnicodeError):
            raise ValueError(
                f"prepare.custom.encoding={own.encoding!r} is no encoding that Python knows: write "
                "utf-8, cp1252, latin-1, utf-16, .."
            ) from None
        if own.time == FILE_ORDER and config.protocol == "temporal":
            raise ValueError(
                f"prepare.custom.time={FILE_ORDER!r}: protocol temporal cuts in time; name a "
                "column of times, or take protocol leave-one-out"
            )

    def raw_files(self, source: Path | None) -> dict[str, Path]:
        """The file, all files of the folder, or those in which `datasets` keeps what it fetched."""
        return files_of(source)

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions:
        """Read the source.

        Returns:
            Interactions in file order; `item_keys` and `user_keys` are the source's ids. With
            `prepare.custom.time: file order` timestamps are null.

        Raises:
            ValueError: A column or a value cannot be used; the message names the file, the line,
                the value and the remedy.
        """
        assert config.source is not None  # `raw_files` has seen it
        opened = open_source(Path(config.source).expanduser(), config.custom)
        rows = _read(opened.interactions, config)
        known, told = _titles(rows, opened.titles, config.custom)
        told = [*rows.told, *told]
        kept = _kept(rows, config, told)
        users, user_keys = _numbered(rows.users, kept)
        items, item_keys = _numbered(rows.items, kept)
        table: dict[str, Any] = {"user_id": users, "item_id": items}
        if rows.times is None:
            table["timestamp"] = pd.array([pd.NA] * len(kept), dtype="Int64")
        else:
            table["timestamp"] = rows.times[kept]
        titles_shown = [known.get(key, key) for key in item_keys]
        untitled = sum(key not in known for key in item_keys)
        if untitled:
            told.append(f"titles: {untitled} of {len(item_keys)} items have none: the id is shown")
        for line in told:
            print(f"[{self.name}] {line}", flush=True)
        return Interactions(
            pd.DataFrame(table, copy=False),
            titles_shown,
            item_keys=item_keys,
            user_keys=user_keys,
            notes=(f"**Source**: {'; '.join(told)}.",),
        )


@dataclass(frozen=True)
class _Rows:
    """The n rows of a source, all of them sound."""

    users: Ids
    items: Ids
    times: np.ndarray | None
    """int64 [n], ms; None where the rows are in order and have no times."""
    ratings: np.ndarray | None
    """float64 [n], if they are asked for."""
    title: Column | None
    columns: Columns
    told: list[str]


def _read(source: Source, config: PrepareConfig) -> _Rows:
    columns = chosen(source, config.custom, rated=config.min_rating is not None)
    wanted = (columns.user, columns.item, columns.time, columns.title, columns.rating)
    read = source.read(list(dict.fromkeys(name for name in wanted if name is not None)))
    users, items = ids(read[columns.user]), ids(read[columns.item])
    count = f"{len(users.codes)} rows, {len(users.keys)} users, {len(items.keys)} items"
    told = [f"{Path(source.name).name}: {count}", f"columns: {columns.told()}"]
    if columns.time is None:
        times, meaning = None, "none; the rows are taken to be in order"
    else:
        times, meaning = milliseconds(read[columns.time])
    told.append(f"times: {meaning}")
    return _Rows(
        users=users,
        items=items,
        times=times,
        ratings=None if columns.rating is None else ratings(read[columns.rating]),
        title=None if columns.title is None else read[columns.title],
        columns=columns,
        told=told,
    )


def _titles(
    rows: _Rows, source: Source | None, config: CustomConfig
) -> tuple[dict[str, str], list[str]]:
    """Title by the item's id, where there is one; and what there is to say."""
    if source is not None:
        item, title = title_columns(source, config, rows.columns.item)
        read = source.read(list(dict.fromkeys((item, title))))
        items, column, guessed = ids(read[item]), read[title], config.title is None
        told = [f"titles: {Path(source.name).name}, item = {item!r}, title = {title!r}"]
    elif rows.title is not None:
        items, column, told = rows.items, rows.title, []
        guessed = "title" in rows.columns.guessed
    else:
        return {}, []
    found = titles(column, items.codes, len(items.keys), guessed=guessed)
    if found.several:
        told.append(f"titles: {found.several} items have several, the first of which is shown")
    pairs = zip(items.keys.to_pylist(), found.texts, strict=True)
    known = {key: title for key, title in pairs if title is not None}
    if source is not None and known.keys().isdisjoint(rows.items.keys.to_pylist()):
        raise ValueError(
            f"{source.name} has a title of none of the items: its column {column.name!r} is empty, "
            f"or its ids, such as {shown(items.keys[0].as_py())}, are not those of "
            f"{rows.columns.item!r}, such as {shown(rows.items.keys[0].as_py())}: write the same "
            "ids in both files"
        )
    return known, told


def _kept(rows: _Rows, config: PrepareConfig, told: list[str]) -> np.ndarray:
    """The rows that stay, in file order: int64 [m]. First the rating decides, then repeats do."""
    kept = np.arange(len(rows.users.codes))
    if rows.ratings is not None:
        kept = np.flatnonzero(rows.ratings >= config.min_rating)
        told.append(f"ratings: {len(kept)} rows have {config.min_rating:g} or more")
        if not len(kept):
            raise ValueError(
                f"prepare.min_rating={config.min_rating:g} leaves no row: the highest rating is "
                f"{rows.ratings.max():g}"
            )
    if config.custom.repeats != "keep":
        before = len(kept)
        kept = _once(rows, kept, last=config.custom.repeats == "last")
        told.append(
            f"repeats: {before - len(kept)} rows repeat a user and an item; the "
            f"{config.custom.repeats} of each in time stays"
        )
    return kept


def _once(rows: _Rows, kept: np.ndarray, *, last: bool) -> np.ndarray:
    """The first or last row in time of each user and item, in file order; ties keep that order."""
    users, items = rows.users.codes[kept], rows.items.codes[kept]
    times = np.zeros(len(kept), np.int64) if rows.times is None else rows.times[kept]
    order = order_by(users, items, times)
    starts = run_starts(users[order], items[order])
    ends = np.append(starts[1:], len(order)) - 1
    return kept[np.sort(order[ends if last else starts])]


def _numbered(found: Ids, kept: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Numbers of the kept rows' ids, from 0 in order of first appearance; and the ids."""
    codes, used = pd.factorize(found.codes[kept])
    return codes.astype(np.int64, copy=False), found.keys.take(pa.array(used)).to_pylist()
