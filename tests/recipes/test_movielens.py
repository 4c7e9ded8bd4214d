import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from recipes.checksums import Checksums
from recipes.data.order import in_order
from recipes.data.prepare import prepare
from recipes.data.splits import assign_splits
from recipes.datasets import movielens
from recipes.datasets.movielens import MovieLens
from recipes.experiment import PrepareConfig

GENUINE = Path(__file__).resolve().parents[2] / ".." / "shared/data/raw/ml-100k"
needs_genuine = pytest.mark.skipif(
    not GENUINE.is_dir(), reason=f"the official files are not in {GENUINE}"
)

FILMS = [
    "Toy Story (1995)",
    "Fish Called Wanda, A (1988)",
    "Sabrina (1954)",
    "Sabrina (1995)",
    "Hate (Haine, La) (1995)",
    "unknown",
    "Enfer, L' (1994)",
    "Anna, the Other (1990)",
]
TITLES = [
    "Toy Story",
    "A Fish Called Wanda",
    "Sabrina (1954)",
    "Sabrina (1995)",
    "Hate (La Haine)",
    "unknown",
    "L'Enfer",
    "Anna, the Other",
]
USERS = range(1, 8)


def rating_lines() -> list[tuple[int, int, int, int]]:
    """User u rates films 1 .. 5 at times that run backwards for 1 and are all equal for 2."""
    rows = [(7, 8, 5, 9_000)]
    for user in USERS:
        for film in range(1, 6):
            time = {1: 100 - film, 2: 50}.get(user, 10 * user + film)
            rows.append((user, film, 2 if (user, film) == (3, 2) else 3 + film % 3, time))
    return rows


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raw files in the official format: no header, Latin-1, films with 24 fields."""
    films = [
        f"{number}|{title}|01-Jan-1995||http://x/{number}|" + "|".join("0" * 19)
        for number, title in enumerate(FILMS, 1)
    ]
    ratings = ["\t".join(map(str, row)) for row in rating_lines()]
    contents = {movielens.FILMS: films, movielens.RATINGS: ratings}
    for name, lines in contents.items():
        (tmp_path / name).write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    rows = {name: len(lines) for name, lines in contents.items()}
    monkeypatch.setattr(movielens, "OFFICIAL_ROWS", rows)
    return tmp_path


def read(folder: Path, protocol: str) -> tuple[dict[int, list[int]], list[str]]:
    """Each user's items in order, users in the order of the split, and titles."""
    dataset = MovieLens()
    files = dataset.raw_files(folder)
    found = dataset.read(PrepareConfig(dataset="movielens", protocol=protocol), files)
    ordered = assign_splits(in_order(found, "stable", 0), protocol, 0.1)
    users, items = ordered["user_id"].tolist(), ordered["item_id"].tolist()
    sequences: dict[int, list[int]] = {user: [] for user in users}
    for user, item in zip(users, items, strict=True):
        sequences[user].append(item)
    return sequences, found.titles


def test_ratings_of_three_or_better_are_ordered_by_time(raw: Path) -> None:
    sequences, titles = read(raw, "chronological")
    assert titles == TITLES
    assert sequences == {
        3: [0, 2, 3, 4],  # film 2 was rated 2
        4: [0, 1, 2, 3, 4],
        2: [0, 1, 2, 3, 4],  # all in one second: file order
        5: [0, 1, 2, 3, 4],
        6: [0, 1, 2, 3, 4],
        7: [0, 1, 2, 3, 4, 7],
        1: [4, 3, 2, 1, 0],
    }
    assert list(sequences) == [3, 4, 2, 5, 6, 7, 1]  # by the first second: 31, 41, 50, 51, ...


def test_llara_loses_the_first_rating_of_the_file(raw: Path) -> None:
    sequences, titles = read(raw, "llara")
    sound, _ = read(raw, "chronological")
    assert sequences == sound | {7: [0, 1, 2, 3, 4]}
    assert titles == TITLES


@pytest.mark.parametrize("name", [movielens.FILMS, movielens.RATINGS])
def test_a_missing_or_altered_file_is_named_with_the_remedy(raw: Path, name: str) -> None:
    path = raw / name
    whole = path.read_bytes()
    for kept in (0, 1, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"{name} is not the official file, or is truncated"):
            read(raw, "llara")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*--source"):
        read(raw, "llara")


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b"7\t8\t5\t9000", b"7\t9\t5\t9000", "line 1: item 9"),
        (b"7\t8\t5\t9000", b"7\t8\t6\t9000", "line 1: rating 6"),
        (b"7\t8\t5\t9000", b"7\t1\t5\t9000", "line 32: a second rating"),
        (b"7\t8\t5\t9000", b"7\t8\t5\tnever", "never"),
        (b"7\t8\t5\t9000", b"7\t8\t\t9000", "is not the official file"),
    ],
)
def test_an_impossible_rating_is_refused_with_its_line(
    raw: Path, before: bytes, after: bytes, reason: str
) -> None:
    path = raw / movielens.RATINGS
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(ValueError, match=reason):
        read(raw, "chronological")


@pytest.mark.parametrize(
    ("full", "title"),
    [
        ("Toy Story (1995)", "toy story"),
        ("Godfather, The (1972)", "the godfather"),
        ("Good, The Bad and The Ugly, The (1966)", "the good bad and the ugly"),  # both are cut
        ("Affair to Remember, An (1957)", "a affair to remembern"),  # `, A` comes before `, An`
        (
            "Double vie, La (Double Life of Veronique, The) (1991)",
            "the double vie, la (double life of veronique)",
        ),
        ("Land Before Time III (1995) (V)", "land before time iii (19"),
        ("unknown", ""),
        ("Two Friends (1986) ", "two friends"),
        ("Enfer, L' (1994)", "enfer, l'"),
    ],
)
def test_reference_titles_have_the_references_mistakes(full: str, title: str) -> None:
    assert movielens._reference_title(full) == title


def test_titles_of_the_reference_are_an_option(raw: Path) -> None:
    config = PrepareConfig(dataset="movielens", protocol="llara", titles="reference")
    found = MovieLens().read(config, MovieLens().raw_files(raw))
    assert found.titles[:3] == ["toy story", "a fish called wanda", "sabrina"]
    assert found.titles[5] == "unknown"  # the reference leaves nothing of it
    assert [note.rpartition("stays: ")[2] for note in found.notes] == ["`unknown` (film 6)."]
    clean = PrepareConfig(dataset="movielens", protocol="llara")
    assert MovieLens().read(clean, MovieLens().raw_files(raw)).notes == ()


@pytest.mark.parametrize(("least", "count"), [(None, 35), (1, 36), (4, 28), (5, 14)])
def test_ratings_below_the_least_are_left_out(raw: Path, least: float | None, count: int) -> None:
    config = PrepareConfig(dataset="movielens", protocol="leave-one-out", min_rating=least)
    found = MovieLens().read(config, MovieLens().raw_files(raw))
    assert len(found.table) == count
    assert found.item_keys == [str(number) for number in range(1, 9)]


@needs_genuine
def test_the_official_files_give_recboles_statistics(tmp_path: Path) -> None:
    config = PrepareConfig(
        dataset="movielens",
        protocol="leave-one-out",
        source=str(GENUINE),
        min_rating=1,
        core=5,
        max_history=50,
    )
    folder = tmp_path / "prepare"
    prepare(config, folder, Checksums(tmp_path / "checksums.json"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["counts"]["interactions"] == 99_287
    assert manifest["counts"]["items"] == 1349
    assert manifest["counts"]["users"] == {"train": 943, "val": 943, "test": 943}
    assert manifest["ties"]["users_with_tied_last"] == 416
    assert fingerprint(folder / "interactions.parquet") == "6833688c55a24b8a"


@needs_genuine
@pytest.mark.parametrize(
    ("protocol", "interactions", "trained", "rows"),
    [
        (
            "llara",
            82_519,
            66_126,
            "a0ededb986ac2695",
        ),
        (
            "chronological",
            82_520,
            66_127,
            "09eefddb03ced928",
        ),
    ],
)
def test_the_official_files_give_the_published_counts(
    tmp_path: Path, protocol: str, interactions: int, trained: int, rows: str
) -> None:
    config = PrepareConfig(dataset="movielens", protocol=protocol, source=str(GENUINE))
    folder = tmp_path / "prepare"
    prepare(config, folder, Checksums(tmp_path / "checksums.json"))
    counts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["counts"]
    assert counts["interactions"] == interactions
    assert counts["items"] == 1682
    assert counts["items_absent_from_train"] == 157
    assert counts["users"] == {"train": 754, "val": 94, "test": 95}
    assert counts["windows"]["test"] == 7951
    assert counts["windows_with_history_of_3"]["train"] == trained
    usable = counts["last_windows_with_history_of_3"]
    assert (usable["val"], usable["test"]) == (94, 95)
    assert fingerprint(folder / "interactions.parquet") == rows


def fingerprint(path: Path) -> str:
    """The beginning of the SHA-256 of a table's users and items in order."""
    table = pd.read_parquet(path)[["user_id", "item_id"]]
    return hashlib.sha256(table.to_numpy("<i8").tobytes()).hexdigest()[:16]
