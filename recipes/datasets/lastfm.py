"""HetRec-LastFM-2k: the artists that users tagged (`user_taggedartists.dat`, `artists.dat`).

The protocols use the same (user, artist) pairs and item ids, so their figures differ by order and
split alone:

1. Pairs in file order. A pair counts once; artists that `artists.dat` lacks are dropped.
2. Artists with at least 4 users are kept, then users with at least 4 artists: one pass each.
3. item_id numbers the artists in order of first appearance.
4. Users are ranked by the earliest date among their pairs' first rows; ties keep file order.

A given `prepare.core` takes the place of 2, and artists that `artists.dat` lacks stay, as in
S3-Rec's file, under a made-up name.

`llara`: a user's order is file order, as in LLaRA's published files (whose counts it equals). File
order is ascending artist id, NOT time. Hence a leak: the target's artist id always exceeds every
artist id of the history. "The candidate with the smallest artist id above the last item's" scores
HR@1 .319 without learning anything; the paper's SASRec has .2233. What is measured is file order.

The other protocols order a user's pairs by the date at which the user first tagged the artist. But
dates have the resolution of a day: 87 % of neighbours share one. In file order (`stable`) the leak
shrinks (the rule above: .20) without vanishing, so the order of a day is `random` by default (.11:
users tend to tag artists of greater ids later).

A few dates precede Last.fm (1957, 1979); they are kept, as in the reference.
"""

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recipes.datasets.dataset import BY_TIME, Dataset, Interactions
from recipes.datasets.download import Archive
from recipes.datasets.ordering import order_by, positions, run_starts
from recipes.experiment import PrepareConfig

ARCHIVE = Archive(
    "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
    md5="296d61afe4e8632b173fc2dd3be20ce2",
)
ARTISTS = "artists.dat"
TAGGINGS = "user_taggedartists.dat"
OFFICIAL_ROWS = {ARTISTS: 17_632, TAGGINGS: 186_479}
"""Rows without the header; another number means a truncated or altered file."""

ORDER = ("userID", "artistID", "tagID")
"""Columns by which the rows of `user_taggedartists.dat` ascend."""

READ_AT_ONCE = 2**20
"""Number of rows parsed at once."""

MIN_USERS_OF_ARTIST = 4
MIN_ARTISTS_OF_USER = 4
LEAK = (
    "**This protocol leaks the answer.** LLaRA's LastFM histories are in file order, which "
    "is ascending artist id, not time: the target's id always exceeds every id of the "
    "history. The rule 'the smallest candidate id above the last one' scores HitRatio@1 "
    ".319 without learning anything. Use `prepare.protocol: chronological` for a sound "
    "figure; `llara` is here to compare with published ones."
)
REMAINS = (
    "**File order leaks the answer** among artists that were tagged on one day, as 87 % of "
    "neighbours are: it is ascending artist id. The rule 'the smallest candidate id above the last "
    "one' scores HitRatio@1 .20 on the last windows of `chronological`. Use `prepare.ties: random` "
    "for a sound figure."
)


class LastFM(Dataset):
    """The artists that Last.fm users tagged, in file order or by time."""

    name = "lastfm"
    summary = "HetRec-LastFM-2k (2011): artists that users tagged; downloaded, or in --source"
    protocols = ("llara", *BY_TIME)
    ties = "random"
    has_reference_titles = True

    def raw_files(self, source: Path | None) -> dict[str, Path]:
        """`artists.dat` and `user_taggedartists.dat` of the unzipped archive."""
        return ARCHIVE.files(source, (ARTISTS, TAGGINGS))

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions:
        """Read the raw files.

        Returns:
            Interactions. User ids are those of the file, timestamps are midnights in UTC, and
            titles are the artists' names without surrounding white space.

        Raises:
            ValueError: A file is not the official one, or is truncated; or the protocol is `llara`
                and the rows are not in the order of the official file.
        """
        artists = _read_artists(files[ARTISTS])
        taggings = _read_taggings(files[TAGGINGS])
        if config.protocol == "llara":
            _refuse_other_order(files[TAGGINGS], taggings)
        del taggings["tagID"]
        pairs = _pairs(taggings)
        del taggings
        if config.core is None:
            pairs = _filtered(pairs, artists)
        item_ids, artist_ids = pd.factorize(pairs.pop("artistID").to_numpy())
        pairs["item_id"] = item_ids
        ranking = pairs["first_row"].to_numpy()
        names = artists.to_dict()
        titles = [names.get(artist, f"unknown artist {artist}") for artist in artist_ids.tolist()]
        if config.titles == "reference":
            titles = [title.lower() for title in titles]
        keys = [str(artist) for artist in artist_ids]
        return Interactions(_table(pairs, config.protocol), titles, ranking, keys)

    def caveats(self, config: PrepareConfig) -> list[str]:
        """The warning about the leak of file order, where the order of a day is not random."""
        if config.protocol == "llara":
            return [LEAK]
        return [] if (config.ties or self.ties) == "random" else [REMAINS]


def _read_artists(path: Path) -> pd.Series:
    """Artist names by artist id (UTF-8; an artist may be called `NA` or carry a quotation mark)."""
    columns: dict[Hashable, str] = {"id": "int64", "name": "str", "url": "str"}
    table = pd.concat(_read_table(path, columns)).set_index("id")
    names, urls = table["name"].str.strip(), table["url"]
    # The address is not used, but where it is missing, the name before it may have been cut.
    if not (names.str.len().ge(1).all() and urls.str.len().ge(1).all() and names.index.is_unique):
        raise ARCHIVE.altered(path, "an artist without name or address, or two artists of one id")
    return names


def _read_taggings(path: Path) -> pd.DataFrame:
    """Columns userID, artistID, tagID, timestamp (int64, ms): a row for each tag, in file order."""
    columns: tuple[Hashable, ...] = (*ORDER, "day", "month", "year")
    read: dict[str, list[np.ndarray]] = {name: [] for name in (*ORDER, "timestamp")}
    for table in _read_table(path, dict.fromkeys(columns, "int64")):
        if not table["year"].between(1900, 2100).all():
            raise ARCHIVE.altered(path, "a year outside 1900 .. 2100")
        timestamps = _timestamps(table)
        if timestamps is None:
            raise ARCHIVE.altered(path, "a day that is in no calendar")
        for name, values in read.items():
            values.append(timestamps if name == "timestamp" else table[name].to_numpy())
    # One column at a time, so that memory holds at most one column twice.
    joined = {name: np.concatenate(read.pop(name)) for name in list(read)}
    return pd.DataFrame(joined, copy=False)


def _refuse_other_order(path: Path, taggings: pd.DataFrame) -> None:
    """Refuse rows that do not ascend by `ORDER`, as the official file's do (ValueError)."""
    tied = np.ones(len(taggings) - 1, dtype=np.bool_)
    for name in ORDER:
        values = taggings[name].to_numpy()
        behind = np.flatnonzero(tied & (values[1:] < values[:-1]))
        if len(behind):
            line = int(behind[0]) + 3  # after the header, counted from 1
            raise ValueError(
                f"{path}, line {line}: {name} {values[behind[0] + 1]} follows "
                f"{values[behind[0]]}, but the rows of the official file ascend by "
                f"{', '.join(ORDER)}, and prepare.protocol='llara' is their order: unzip "
                f"{ARCHIVE.url} again, or choose prepare.protocol=chronological"
            )
        tied &= values[1:] == values[:-1]


def _timestamps(table: pd.DataFrame) -> np.ndarray | None:
    """The dates as midnights: int64 [n], ms since 1970. None if one is not in the calendar."""
    years, months, days = (table[name].to_numpy() for name in ("year", "month", "day"))
    if not ((months >= 1) & (months <= 12) & (days >= 1) & (days <= 31)).all():
        return None
    first = ((years - 1970) * 12 + months - 1).astype("datetime64[M]")
    dates = first.astype("datetime64[D]") + (days - 1)
    if (dates.astype("datetime64[M]") != first).any():
        return None
    return dates.astype("datetime64[ms]").astype(np.int64)


def _read_table(path: Path, columns: dict[Hashable, str]) -> Iterator[pd.DataFrame]:
    """Read columns of a tab-separated file with a header, in parts; line ends are LF or CRLF."""
    rows = 0
    try:
        with pd.read_csv(
            path,
            sep="\t",
            usecols=list(columns),
            dtype=columns,
            encoding="utf-8",
            quoting=3,
            keep_default_na=False,
            chunksize=READ_AT_ONCE,
        ) as parts:
            for part in parts:
                rows += len(part)
                yield part
    except ValueError as error:
        raise ARCHIVE.altered(path, str(error)) from error
    expected = OFFICIAL_ROWS[path.name]
    if rows != expected:
        raise ARCHIVE.altered(path, f"{rows} rows, where the official file has {expected}")


def _pairs(taggings: pd.DataFrame) -> pd.DataFrame:
    """One row for each (user, artist) pair, in file order.

    `first_row` is the date of the pair's first row, `earliest` its earliest date. They differ in
    7 % of the pairs kept, because a pair's rows are in order of tag id.
    """
    users, artists = taggings["userID"].to_numpy(), taggings["artistID"].to_numpy()
    timestamps = taggings["timestamp"].to_numpy()
    order = order_by(users, artists)
    starts = run_starts(users[order], artists[order])
    earliest = np.minimum.reduceat(timestamps[order], starts) if len(starts) else timestamps
    first = order[starts]
    in_file_order = order_by(first)
    first = first[in_file_order]
    columns = {
        "userID": users[first],
        "artistID": artists[first],
        "first_row": timestamps[first],
        "earliest": earliest[in_file_order],
    }
    return pd.DataFrame(columns, copy=False)


def _filtered(pairs: pd.DataFrame, artists: pd.Series) -> pd.DataFrame:
    """LLaRA's filter."""
    pairs = _where(pairs, np.isin(pairs["artistID"].to_numpy(), artists.index.to_numpy()))
    pairs = _where(pairs, _occurrences(pairs["artistID"].to_numpy()) >= MIN_USERS_OF_ARTIST)
    return _where(pairs, _occurrences(pairs["userID"].to_numpy()) >= MIN_ARTISTS_OF_USER)


def _occurrences(ids: np.ndarray) -> np.ndarray:
    """How often each row's id occurs: int64 [n]."""
    codes, _ = pd.factorize(ids)
    return np.bincount(codes)[codes]


def _where(table: pd.DataFrame, selected: np.ndarray) -> pd.DataFrame:
    if selected.all():
        return table
    rows = np.flatnonzero(selected)
    columns = {name: column.to_numpy()[rows] for name, column in table.items()}
    return pd.DataFrame(columns, copy=False)


def _table(pairs: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The interactions in file order; under `llara` each with its position, which is that order."""
    users = pairs["userID"].to_numpy()
    timestamps = pairs["first_row" if protocol == "llara" else "earliest"].to_numpy()
    columns = {"user_id": users, "item_id": pairs["item_id"].to_numpy(), "timestamp": timestamps}
    if protocol == "llara":
        columns["position"] = positions(users, order_by(users))
    return pd.DataFrame(columns, copy=False)
