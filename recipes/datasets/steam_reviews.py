"""Steam's reviews (`steam_reviews.json.gz`, `steam_games.json.gz`; Kang and McAuley, 2018).

LLaRA's rules with a draw of our own: users with at least 20 reviews are kept, then a random third
of the users and a random third of the games. So the numbers resemble LLaRA's (`steam.py`) without
being comparable with them.

Each line of the files is a dictionary in Python's notation, not JSON. It is read as a literal,
which runs nothing. Reviews are read one by one, and three numbers are kept of each.
"""

import ast
import gzip
import re
import zlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from recipes.datasets.dataset import Dataset, Interactions
from recipes.datasets.folders import folder_with
from recipes.datasets.ordering import order_by, run_starts
from recipes.experiment import PrepareConfig

REVIEWS = "steam_reviews.json.gz"
GAMES = "steam_games.json.gz"
ADDRESS = "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data"
MIN_REVIEWS = 20
DRAWN = 3
"""One user of this many is kept, and one game of this many."""
DRAW_SEED = 0
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class SteamReviews(Dataset):
    """The games that Steam's users reviewed, by date."""

    name = "steam-reviews"
    summary = "Steam's reviews (2018), a random third of users and games; raw files in --source"

    def raw_files(self, source: Path | None) -> dict[str, Path]:
        """`steam_reviews.json.gz` and `steam_games.json.gz`."""
        if source is None:
            raise FileNotFoundError(
                f"prepare.source is missing: fetch {REVIEWS} and {GAMES} from {ADDRESS} and pass "
                "the folder that holds them as --source"
            )
        folder = folder_with(source, (REVIEWS, GAMES))
        files = {name: folder / name for name in (REVIEWS, GAMES)}
        for path in files.values():
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing: fetch it from {ADDRESS} and pass its folder as --source"
                )
        return files

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions:
        """Read the raw files.

        Returns:
            Interactions. Users are numbered by their first review in the file, timestamps are
            midnights in UTC; reviews of one day keep the file's order.

        Raises:
            ValueError: A line is no literal, or lacks a field; the file and the line are named.
        """
        titles = _titles(files[GAMES])
        known, (users, games, days) = _reviews(
            files[REVIEWS], {game: n for n, game in enumerate(titles)}
        )
        kept = _first_of_each_pair(users, games)
        kept = kept[np.bincount(users[kept])[users[kept]] >= MIN_REVIEWS]
        kept = kept[_drawn(users[kept], DRAW_SEED) & _drawn(games[kept], DRAW_SEED + 1)]
        items, numbers = pd.factorize(games[kept])
        columns = {
            "user_id": users[kept],
            "item_id": items,
            "timestamp": days[kept] * 86_400_000,
        }
        names, keys = list(titles.values()), list(titles)
        return Interactions(
            pd.DataFrame(columns, copy=False),
            [names[number] for number in numbers],
            item_keys=[keys[number] for number in numbers],
            user_keys=known,
        )


def _titles(path: Path) -> dict[str, str]:
    """Title by product id."""
    titles = {}
    for line, game in _literals(path):
        name = game.get("app_name") or game.get("title")
        if name and "id" in game:  # a few products have neither
            titles[_text(path, line, game, "id")] = str(name).strip()
    return titles


def _reviews(path: Path, games: Mapping[str, int]) -> tuple[list[str], list[np.ndarray]]:
    """Names of the users, by number; and user, game (its number in `games`) and day since 1970 of
    each review: int64 [n] each.

    Reviews of games without a title are left out.
    """
    known: dict[str, int] = {}
    users, items, days = array("q"), array("q"), array("q")
    for line, review in _literals(path):
        game = games.get(_text(path, line, review, "product_id"))
        user = known.setdefault(_text(path, line, review, "username"), len(known))
        if game is None:
            continue
        users.append(user)
        items.append(game)
        days.append(_day(path, line, review))
    return list(known), [np.array(values, np.int64) for values in (users, items, days)]


def _literals(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The dictionaries of a file, with their line numbers from 1."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(tqdm(file, desc=path.name, unit="line"), 1):
                yield number, _literal(path, number, line)
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}): fetch it again") from None


def _literal(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = ast.literal_eval(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}, line {number}: {line[:60]!r} is no dictionary in Python's notation; fetch "
            f"the file again from {ADDRESS}"
        )
    return found


def _text(path: Path, number: int, record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise ValueError(f"{path}, line {number}: field {field!r} is {value!r}, no name or number")
    return str(value)


def _day(path: Path, number: int, review: Mapping[str, Any]) -> int:
    value = str(review.get("date"))
    try:
        if DATE.fullmatch(value) is None:  # numpy would also take `today`, `NaT` and years alone
            raise ValueError
        return int(np.datetime64(value, "D").astype(np.int64))
    except ValueError:
        raise ValueError(
            f"{path}, line {number}: field 'date' is {review.get('date')!r}, no year-month-day"
        ) from None


def _first_of_each_pair(users: np.ndarray, games: np.ndarray) -> np.ndarray:
    """Rows of each user's first review of each game, in the file's order."""
    order = order_by(users, games)
    return np.sort(order[run_starts(users[order], games[order])])


def _drawn(ids: np.ndarray, seed: int) -> np.ndarray:
    """Whether each row's id is among the ones drawn: bool [n]."""
    known = np.unique(ids)
    order = np.random.default_rng(seed).permutation(len(known))
    return np.isin(ids, known[order[: len(known) // DRAWN]])
