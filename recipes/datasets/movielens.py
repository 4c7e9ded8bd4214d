"""MovieLens-100K: the films that users rated 3 or better (`u.data`, `u.item`).

`llara` rebuilds LLaRA's published windows row for row. (1) The file's first rating is missing: it
was read as a header. (2) A user's ratings are sorted by time with numpy's unstable quicksort, which
leaves ratings of the same second, and 48 % of neighbours share one, in an order of its own
(`unstable_sort.py`). (3) Users are ranked by their first rating.

The other protocols order by time; by default, ratings of the same second stay in file order, which
is not that of ids.

Both keep all 1,682 films, unless a `prepare.core` is asked for; 157 of them no train user of theirs
has rated. A given `prepare.min_rating` takes the place of 3.

Titles come without the year, and `Godfather, The` is shown as `The Godfather`; where two titles
would be equal then, the year stays. `prepare.titles: reference` makes LLaRA's titles instead, with
their mistakes; only item 266, `unknown`, of which they leave nothing, keeps its own.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recipes.datasets.dataset import BY_TIME, Dataset, Interactions
from recipes.datasets.download import Archive
from recipes.datasets.ordering import order_by, positions, run_starts
from recipes.datasets.unstable_sort import unstable_order
from recipes.experiment import PrepareConfig

ARCHIVE = Archive(
    "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    md5="0e33842e24a9c977be4e0107933c0723",
)
RATINGS = "u.data"
FILMS = "u.item"
OFFICIAL_ROWS = {RATINGS: 100_000, FILMS: 1_682}
"""Number of rows; another number means a truncated or altered file."""
MIN_RATING = 3
ARTICLE = re.compile(
    r"^(?P<rest>.+), (?P<article>The|An|A|Das|Der|Die|El|Il|L'|La|Las|Le|Les|Los)$"
)
"""A title whose article stands at its end."""
REFERENCE_ARTICLES = ("The", "A", "An")
KEPT = (
    "**Titles that the reference leaves empty**, as it cuts off a year whether there is one or "
    "not, cannot be shown in a prompt, so the clean one stays: {}."
)
YEAR = re.compile(r" \((?P<year>\d{4})\)\s*$")


class MovieLens(Dataset):
    """The films that users of MovieLens rated 3 or better, by time."""

    name = "movielens"
    summary = "MovieLens-100K (1998): films rated 3 or better; downloaded, or in --source"
    protocols = ("llara", *BY_TIME)
    has_ratings = True
    has_reference_titles = True

    def raw_files(self, source: Path | None) -> dict[str, Path]:
        """`u.data` and `u.item` of the unzipped archive."""
        return ARCHIVE.files(source, (FILMS, RATINGS))

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions:
        """Read the raw files.

        Returns:
            Interactions. User ids are those of the file, timestamps are in UTC.

        Raises:
            ValueError: A file is not the official one, or is truncated.
        """
        films = _read(files[FILMS], "|", ["id", "title"])
        titles, notes = _titles(films), ()
        if config.titles == "reference":
            titles, notes = _reference_titles(films, titles)
        ratings = _read(files[RATINGS], "\t", ["user", "item", "rating", "second"])
        if config.protocol == "llara":
            ratings = ratings.iloc[1:]
        least = MIN_RATING if config.min_rating is None else config.min_rating
        liked = ratings.loc[ratings["rating"] >= least]
        keys = [str(number) for number in range(1, len(titles) + 1)]
        return Interactions(_table(liked, config.protocol), titles, item_keys=keys, notes=notes)


def _read(path: Path, separator: str, names: list[str]) -> pd.DataFrame:
    """The first columns of a file without a header: numbers, and text in `title`."""
    try:
        table = pd.read_csv(
            path,
            sep=separator,
            header=None,
            names=names,
            usecols=range(len(names)),
            dtype={name: "str" if name == "title" else "int64" for name in names},
            encoding="iso-8859-1",
            quoting=3,
            keep_default_na=False,
        )
    except ValueError as error:
        raise ARCHIVE.altered(path, str(error)) from error
    rows = OFFICIAL_ROWS[path.name]
    if len(table) != rows:
        raise ARCHIVE.altered(path, f"{len(table)} rows, where the official file has {rows}")
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            raise ARCHIVE.altered(path, "its last line has no end")
    first = table[names[0]].to_numpy()
    if path.name == FILMS and not np.array_equal(first, np.arange(1, rows + 1)):
        raise ARCHIVE.altered(path, "the films are not numbered 1, 2, 3, ..")
    if path.name == RATINGS:
        _check_ratings(path, table)
    return table


def _check_ratings(path: Path, table: pd.DataFrame) -> None:
    limits = {"item": (1, OFFICIAL_ROWS[FILMS]), "rating": (1, 5), "user": (1, None)}
    for name, (low, high) in limits.items():
        values = table[name]
        wrong = (values < low) | (values > (values.max() if high is None else high))
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise ARCHIVE.altered(path, f"line {row + 1}: {name} {values.iloc[row]}")
    if table.duplicated(["user", "item"]).any():
        row = int(table.duplicated(["user", "item"]).to_numpy().argmax())
        raise ARCHIVE.altered(
            path, f"line {row + 1}: a second rating of the same film by the same user"
        )


def _titles(films: pd.DataFrame) -> list[str]:
    """The films' titles, with the year where they would be equal otherwise."""
    raw = films["title"].str.strip().tolist()
    short = [_without_year(title) for title in raw]
    shared = Counter(title.lower() for title in short)
    return [
        title if shared[title.lower()] == 1 else f"{title}{_year(full)}"
        for title, full in zip(short, raw, strict=True)
    ]


def _reference_titles(films: pd.DataFrame, clean: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """LLaRA's titles, the clean one where it leaves none, and a note on these."""
    made = [_reference_title(full) for full in films["title"]]
    kept = [f"`{own}` (film {row + 1})" for row, own in enumerate(clean) if not made[row]]
    titles = [title or own for title, own in zip(made, clean, strict=True)]
    return titles, (KEPT.format(", ".join(kept)),) if kept else ()


def _reference_title(full: str) -> str:
    """The title that LLaRA makes: the last seven characters are cut off, whatever they are; and the
    first of the articles that stands behind a comma, wherever, comes first, without looking at what
    follows it.
    """
    title = full[: -len(" (1995)")]
    for article in REFERENCE_ARTICLES:
        behind = f", {article}"
        if behind in title:
            title = f"{article} {title.replace(behind, '')}"
            break
    return title.strip().lower()


def _without_year(title: str) -> str:
    bare = YEAR.sub("", title).strip()
    # `Hate (Haine, La)`: the article of a title in brackets is put right as well.
    return re.sub(r"[^()]+", lambda part: _article_first(part[0]), bare)


def _article_first(title: str) -> str:
    core = title.strip()
    found = ARTICLE.match(core)
    if found is None:
        return title
    space = "" if found["article"] == "L'" else " "
    return title.replace(core, f"{found['article']}{space}{found['rest']}")


def _year(title: str) -> str:
    found = YEAR.search(title)
    return "" if found is None else f" ({found['year']})"


def _table(ratings: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The interactions in file order; under `llara` each with its position."""
    users, seconds = ratings["user"].to_numpy(), ratings["second"].to_numpy()
    columns = {
        "user_id": users,
        "item_id": ratings["item"].to_numpy() - 1,
        "timestamp": seconds * 1000,
    }
    if protocol == "llara":
        order = order_by(users)
        own = np.split(order, run_starts(users[order])[1:])
        order = np.concatenate([rows[unstable_order(seconds[rows])] for rows in own])
        columns["position"] = positions(users, order)
    return pd.DataFrame(columns, copy=False)
