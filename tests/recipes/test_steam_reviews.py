import gzip
from pathlib import Path

import numpy as np
import pytest

from recipes.data.order import in_order
from recipes.datasets import steam_reviews
from recipes.datasets.dataset import Interactions
from recipes.datasets.steam_reviews import SteamReviews
from recipes.experiment import PrepareConfig

GAMES = [f"{{u'app_name': u'Game {n}', u'id': u'{n}', u'price': 4.99}}" for n in range(9)]
GAMES.append("{u'publisher': u'Nobody', u'title': u'Said so', u'id': u'9'}")
GAMES.append("{u'url': u'without name or id'}")


def review(user: str, game: int, day: str) -> str:
    fields = {"username": user, "product_id": str(game), "date": day, "text": "it's \n \u96e8"}
    return "{" + ", ".join(f"u'{name}': u{value!a}" for name, value in fields.items()) + "}"


REVIEWS = [
    *(review(f"user {u}", g, f"2017-0{1 + g % 3}-0{1 + u}") for u in range(8) for g in range(10)),
    review("user 0", 1, "2012-01-01"),  # a second review of a game
    review("user 0", 77, "2012-01-01"),  # a game without a title
    review("seldom", 1, "2012-01-01"),
]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path, REVIEWS)
    monkeypatch.setattr(steam_reviews, "MIN_REVIEWS", 10)
    monkeypatch.setattr(steam_reviews, "DRAWN", 2)
    return tmp_path


def write(folder: Path, reviews: list[str]) -> None:
    for name, lines in ((steam_reviews.GAMES, GAMES), (steam_reviews.REVIEWS, reviews)):
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


def read(folder: Path) -> Interactions:
    dataset = SteamReviews()
    config = PrepareConfig(dataset="steam-reviews", protocol="chronological")
    return dataset.read(config, dataset.raw_files(folder))


def test_half_of_the_users_and_games_are_drawn_and_ordered_by_date(raw: Path) -> None:
    found = read(raw)
    table = found.table
    assert len(set(table["user_id"])) == 4 and len(set(table["item_id"])) == 5
    assert len(table) == 20 and len(found.titles) == 5
    assert 8 not in set(table["user_id"])  # "seldom" has one review
    numbers = [9 if title == "Said so" else int(title[-1]) for title in found.titles]
    ordered = in_order(found, "stable", 0).sort_values(["user_id", "position"])
    items = ordered["item_id"].to_numpy().reshape(4, 5)
    months = [[numbers[item] % 3 for item in own] for own in items]
    assert months == [sorted(own) for own in months]
    times = ordered["timestamp"].to_numpy().reshape(4, 5)
    assert np.all(np.diff(times, axis=1) >= 0)
    assert ordered["position"].tolist() == [*range(5)] * 4
    assert found.item_keys == list(map(str, numbers))
    assert found.user_keys == [*(f"user {user}" for user in range(8)), "seldom"]


def test_the_draw_is_the_same_each_time(raw: Path) -> None:
    assert read(raw).table.equals(read(raw).table)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("__import__('os').abort()", "line 4: .* no dictionary in Python's notation"),
        ("[1, 2]", "line 4: .* no dictionary"),
        ("{u'username': u'a', u'product_id'", "line 4: .* no dictionary"),
        ("{u'product_id': u'1', u'date': u'2017-01-01'}", "line 4: field 'username' is None"),
        (review("a", 1, "last year"), "line 4: field 'date' is 'last year'"),
        (review("a", 1, "today"), "line 4: field 'date' is 'today'"),
        (review("a", 1, "NaT"), "line 4: field 'date' is 'NaT'"),
        (review("a", 1, "2017"), "line 4: field 'date' is '2017'"),
        (review("a", 1, "2017-02-30"), "line 4: field 'date' is '2017-02-30'"),
        ("{'username': True, 'product_id': '1'}", "line 4: field 'username' is True"),
    ],
)
def test_a_line_that_is_no_review_is_named(raw: Path, line: str, reason: str) -> None:
    write(raw, [*REVIEWS[:3], line, *REVIEWS[3:]])
    with pytest.raises(ValueError, match=reason):
        read(raw)


@pytest.mark.parametrize("part", [0.5, 0.98])
def test_a_truncated_file_is_refused(raw: Path, part: float) -> None:
    path = raw / steam_reviews.REVIEWS
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="is truncated or no gzip file"):
        read(raw)


def test_a_missing_file_is_named_with_its_address(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"steam_reviews\.json\.gz is missing.*jmcauley"):
        SteamReviews().raw_files(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"prepare\.source is missing"):
        SteamReviews().raw_files(None)
