import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recipes.__main__ import main
from recipes.artifacts import read_table
from recipes.checksums import Checksums
from recipes.data.candidates import CandidateStream
from recipes.data.core import core_of
from recipes.data.order import TieRule, in_order
from recipes.data.prepare import prepare
from recipes.data.sequences import sliding_windows
from recipes.data.splits import assign_splits
from recipes.data.tables import PreparedData
from recipes.datasets import lastfm
from recipes.datasets.lastfm import LastFM
from recipes.experiment import PrepareConfig

GENUINE = Path(__file__).resolve().parents[2] / ".." / "shared/data/raw/hetrec2011-lastfm-2k"
needs_genuine = pytest.mark.skipif(
    not GENUINE.is_dir(), reason=f"the official files are not in {GENUINE}"
)

ARTISTS = {
    10: "Björk",
    20: "Sigur Rós ",
    30: '"Weird Al" Yankovic',
    40: "NA",
    50: "Few",
    60: "宇多田",
}
TAGGED = {
    # user: (date of the first row of each pair, artists in file order)
    2: ("1 1 2009", [20, 30, 40, 60]),
    3: ("1 1 2006", [10, 20, 30, 40, 60, 99]),
    4: ("1 1 2001", [10, 20, 50, 60, 99]),
    5: ("1 1 2006", [10, 20, 30, 40, 50, 60]),
    7: ("1 1 2005", [10, 20, 30, 40, 50, 99]),
    8: ("1 1 2010", [10, 20, 30, 40, 99]),
    9: ("1 1 2004", [10, 20, 30, 40, 99]),
}
LATER_ROWS = {(2, 20): "5 6 2003", (2, 60): "2 1 2009", (8, 10): "3 2 2011"}
"""A second tag of the pair; (2, 20) is dated before the first row of the file."""
FIRST_ROWS = {(2, 30): "7 3 2008", (2, 60): "1 1 2007"}
"""First rows that differ from their user's date."""

# Worked out by hand. Artist 99 has no name; 50 has 3 users; user 4 is left with 3 artists, but
# counts towards the 4 users of artist 60. Ids by first appearance: 20, 30, 40, 60, 10. Ranked by
# first rows: 9 (2004), 7 (2005), 3 and 5 (2006, a tie), 2 (2007), 8 (2010).
TITLES = ["Sigur Rós", '"Weird Al" Yankovic', "NA", "宇多田", "Björk"]
SPLIT = {9: "train", 7: "train", 3: "train", 5: "train", 2: "val", 8: "test"}
FILE_ORDER = {
    9: [4, 0, 1, 2],
    7: [4, 0, 1, 2],
    3: [4, 0, 1, 2, 3],
    5: [4, 0, 1, 2, 3],
    2: [0, 1, 2, 3],
    8: [4, 0, 1, 2],
}


def tagging_lines() -> list[str]:
    lines = ["userID\tartistID\ttagID\tday\tmonth\tyear"]
    for user, (date, artists) in TAGGED.items():
        for artist in artists:
            dates = [FIRST_ROWS.get((user, artist), date)]
            dates += [LATER_ROWS[user, artist]] if (user, artist) in LATER_ROWS else []
            lines += [
                "\t".join([str(user), str(artist), str(13 + place), *day.split()])
                for place, day in enumerate(dates)
            ]
    return lines


def artist_lines() -> list[str]:
    rows = [f"{id}\t{name}\thttp://www.last.fm/music/{id}\t" for id, name in ARTISTS.items()]
    return ["id\tname\turl\tpictureURL", *rows]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raw files in the official format: tab-separated, CRLF, UTF-8 names, no quoting."""
    contents = {lastfm.ARTISTS: artist_lines(), lastfm.TAGGINGS: tagging_lines()}
    for name, lines in contents.items():
        (tmp_path / name).write_bytes(("\r\n".join(lines) + "\r\n").encode())
    rows = {name: len(lines) - 1 for name, lines in contents.items()}
    monkeypatch.setattr(lastfm, "OFFICIAL_ROWS", rows)
    return tmp_path


def read(folder: Path, protocol: str, ties: TieRule = "stable") -> tuple[pd.DataFrame, list[str]]:
    """Interactions as `prepare` orders and splits them, and titles."""
    dataset = LastFM()
    files = dataset.raw_files(folder)
    found = dataset.read(PrepareConfig(dataset="lastfm", protocol=protocol), files)
    return assign_splits(in_order(found, ties, 0), protocol, 0.1), found.titles


def sequences(interactions: pd.DataFrame) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    pairs = interactions[["user_id", "item_id"]].to_numpy().tolist()
    for user, item in pairs:
        found.setdefault(user, []).append(item)
    return found


EXCHANGED = {"tags": (2, 3), "artists": (3, 4), "users": (6, 7)}
"""Rows of the taggings, the header being row 0, whose exchange breaks the order by a column."""


@pytest.mark.parametrize("name", EXCHANGED)
def test_rows_in_another_order_are_refused_under_llara_only(raw: Path, name: str) -> None:
    one, other = EXCHANGED[name]
    path = raw / lastfm.TAGGINGS
    lines = path.read_bytes().decode().split("\r\n")
    lines[one], lines[other] = lines[other], lines[one]
    path.write_bytes("\r\n".join(lines).encode())
    message = rf"{path}, line \d+: \w+ID \d+ follows \d+, .*choose prepare.protocol=chronological"
    with pytest.raises(ValueError, match=message):
        read(raw, "llara")
    assert len(read(raw, "chronological")[0]) == sum(map(len, FILE_ORDER.values()))


def test_llara_takes_file_order_and_ranks_users_by_first_rows(raw: Path) -> None:
    interactions, titles = read(raw, "llara")
    assert titles == TITLES
    assert sequences(interactions) == FILE_ORDER
    assert list(sequences(interactions)) == list(SPLIT)
    assert interactions.groupby("user_id")["split"].first().to_dict() == SPLIT
    files = LastFM().raw_files(raw)
    assert files == {name: raw / name for name in ("artists.dat", "user_taggedartists.dat")}


def test_chronological_takes_the_date_of_the_first_tag_and_keeps_file_order_in_ties(
    raw: Path,
) -> None:
    interactions, titles = read(raw, "chronological")
    # 20 in 2003 (its second row), 60 in 2007, 30 in 2008, 40 in 2009.
    assert sequences(interactions) == FILE_ORDER | {2: [0, 3, 1, 2]}
    assert titles == TITLES
    assert interactions.groupby("user_id")["split"].first().to_dict() == SPLIT


@pytest.mark.parametrize("protocol", ["llara", "chronological"])
def test_the_stage_splits_users_by_first_rows_under_both_protocols(
    raw: Path, tmp_path: Path, protocol: str
) -> None:
    config = PrepareConfig(
        dataset="lastfm", protocol=protocol, source=str(raw), max_history=3, num_candidates=2
    )
    config = config if protocol == "llara" else replace(config, ties="stable")
    prepare(config, tmp_path / "prepare", Checksums(tmp_path / "checksums.json"))
    written = read_table(tmp_path / "prepare" / "interactions.parquet")
    interactions, titles = read(raw, protocol)
    columns = ["user_id", "item_id", "position", "timestamp"]
    assert (written[columns].to_numpy() == interactions[columns].to_numpy()).all()
    assert written.groupby("user_id")["split"].first().to_dict() == SPLIT
    assert PreparedData.load(tmp_path / "prepare").titles == titles


def test_timestamps_are_midnights_in_milliseconds(raw: Path) -> None:
    interactions, _ = read(raw, "chronological")
    user = interactions[interactions["user_id"] == 2]
    days = ["2003-06-05", "2007-01-01", "2008-03-07", "2009-01-01"]
    assert user["timestamp"].tolist() == [pd.Timestamp(day).value // 10**6 for day in days]
    assert user["position"].tolist() == [0, 1, 2, 3]


def test_line_ends_do_not_matter(raw: Path) -> None:
    expected, titles = read(raw, "llara")
    for path in raw.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    interactions, same_titles = read(raw, "llara")
    pd.testing.assert_frame_equal(interactions, expected)
    assert same_titles == titles


@pytest.mark.parametrize("name", [lastfm.ARTISTS, lastfm.TAGGINGS])
def test_a_missing_or_renamed_file_is_named_with_the_remedy(raw: Path, name: str) -> None:
    (raw / name).rename(raw / f"{name}.txt")
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*--source"):
        read(raw, "llara")


@pytest.mark.parametrize("name", [lastfm.ARTISTS, lastfm.TAGGINGS])
def test_a_file_under_another_name_is_refused(raw: Path, name: str) -> None:
    (raw / name).write_bytes(b"userID\tfriendID\r\n2\t275\r\n")
    with pytest.raises(ValueError, match=f"{name} is not the official file"):
        read(raw, "llara")


@pytest.mark.parametrize(
    ("name", "missing"),
    [(lastfm.TAGGINGS, count) for count in (3, 6, 12, 40)]
    + [(lastfm.ARTISTS, count) for count in (31, 33, 34, 43, 60)],
)
def test_a_truncated_file_is_refused(raw: Path, name: str, missing: int) -> None:
    path = raw / name
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ValueError, match=rf"{name} is not the official file, or is truncated"):
        read(raw, "llara")


@pytest.mark.parametrize("date", ["31\t2\t2009", "1\t1\t20", "1\t1\t", "x\t1\t2009"])
def test_a_row_without_a_date_is_refused(raw: Path, date: str) -> None:
    path = raw / lastfm.TAGGINGS
    path.write_bytes(path.read_bytes().replace(b"1\t1\t2010", date.encode(), 1))
    with pytest.raises(ValueError, match=r"user_taggedartists\.dat is not the official file"):
        read(raw, "llara")


def test_names_in_another_encoding_are_refused(raw: Path) -> None:
    path = raw / lastfm.ARTISTS
    path.write_bytes(path.read_bytes().replace("Björk".encode(), "Björk".encode("latin-1")))
    with pytest.raises(ValueError, match=r"artists\.dat is not the official file"):
        read(raw, "llara")


def test_the_leak_of_file_order_is_a_caveat_wherever_it_is_left() -> None:
    def caveats(protocol: str, ties: Any = None) -> list[str]:
        return LastFM().caveats(PrepareConfig(dataset="lastfm", protocol=protocol, ties=ties))

    assert caveats("llara") == [lastfm.LEAK]
    assert caveats("chronological") == caveats("temporal") == caveats("temporal", "random") == []
    for ties in ("stable", "item-id", "drop"):
        assert caveats("leave-one-out", ties) == [lastfm.REMAINS]


def test_a_core_takes_the_place_of_the_datasets_filter(raw: Path) -> None:
    config = PrepareConfig(dataset="lastfm", protocol="leave-one-out", core=4)
    found = LastFM().read(config, LastFM().raw_files(raw))
    assert len(found.table) == sum(len(artists) for _, artists in TAGGED.values())
    core = core_of(found, 4)
    # Artist 50 has 3 users. Artist 99 has 5, of whom user 4 then has 20, 60, 10 and 99: enough.
    assert core.item_keys == ["20", "30", "40", "60", "10", "99"]
    assert core.titles == [*TITLES, "unknown artist 99"]
    assert set(core.table["user_id"]) == set(TAGGED)


def test_reference_titles_are_in_lower_case(raw: Path) -> None:
    config = PrepareConfig(dataset="lastfm", protocol="llara", titles="reference")
    found = LastFM().read(config, LastFM().raw_files(raw))
    assert found.titles == ["sigur rós", '"weird al" yankovic', "na", "宇多田", "björk"]


@needs_genuine
def test_the_official_files_give_s3_recs_statistics(tmp_path: Path) -> None:
    config = PrepareConfig(
        dataset="lastfm",
        protocol="leave-one-out",
        source=str(GENUINE),
        core=5,
        ties="stable",
        max_history=50,
    )
    folder = tmp_path / "prepare"
    prepare(config, folder, Checksums(tmp_path / "checksums.json"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["counts"]["interactions"] == 52_551
    assert manifest["counts"]["items"] == 3646
    assert manifest["counts"]["users"] == {"train": 1090, "val": 1090, "test": 1090}
    assert manifest["counts"]["all_users"] == 1090
    # By the date of a pair's first row they are 514, as published; by its earliest date, 517.
    assert manifest["ties"]["users_with_tied_last"] == 517
    table = read_table(folder / "interactions.parquet")[["user_id", "item_id"]]
    found = hashlib.sha256(table.to_numpy("<i8").tobytes()).hexdigest()
    assert found[:16] == "2b38406d024a0331"


@needs_genuine
@pytest.mark.parametrize("protocol", ["llara", "chronological"])
def test_the_official_files_give_the_published_counts(tmp_path: Path, protocol: str) -> None:
    config = PrepareConfig(dataset="lastfm", protocol=protocol, source=str(GENUINE))
    folder = tmp_path / "prepare"
    record = prepare(config, folder, Checksums(tmp_path / "checksums.json"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert sorted(record.inputs) == ["artists.dat", "user_taggedartists.dat"]
    assert manifest["raw_sha256"] == record.inputs
    counts = manifest["counts"]
    assert counts["interactions"] == 56_794
    assert counts["items"] == 4606
    assert counts["duplicate_titles"] == 0
    assert counts["users"] == {"train": 976, "val": 122, "test": 122}
    assert counts["windows"]["train"] == 50_800
    assert counts["windows"]["test"] == 2861
    assert counts["windows_with_history_of_3"]["train"] == 47_872
    usable = counts["last_windows_with_history_of_3"]
    assert (usable["val"], usable["test"]) == (122, 122)

    test = PreparedData.load(folder).split("test")
    assert len(test) == 2861 and test.is_last.sum() == 122
    assert ((test.candidates == test.targets[:, None]).sum(axis=1) == 1).all()
    assert not (test.candidates[:, :, None] == test.histories[:, None, :]).any()


@needs_genuine
@pytest.mark.parametrize(
    ("last", "most", "least", "num_rows"), [(True, 0.0492, 0.1735, 122), (False, 0.242, None, 2495)]
)
def test_the_last_rows_run_against_popularity_as_documented(
    last: bool, most: float, least: float | None, num_rows: int, tmp_path: Path
) -> None:
    """HitRatio@1 of the most popular candidate first, and of the rarest; ties share it."""
    config = PrepareConfig(dataset="lastfm", protocol="llara", source=str(GENUINE))
    prepare(config, tmp_path / "prepare", Checksums(tmp_path / "checksums.json"))
    table = read_table(tmp_path / "prepare" / "interactions.parquet")
    data = PreparedData.load(tmp_path / "prepare")
    train = table["item_id"].to_numpy()[(table["split"] == "train").to_numpy()]
    counts = np.bincount(train, minlength=data.num_items)
    test = data.split("test")
    rows = (test.history_lengths >= 3) & (test.is_last | (not last))
    found = counts[test.candidates[rows]]
    is_target = test.candidates[rows] == test.targets[rows, None]
    assert len(found) == num_rows
    for sign, expected in ((1, most), (-1, least)):
        first = sign * found == (sign * found).max(axis=1, keepdims=True)
        if expected is not None:
            hits = (first & is_target).sum(axis=1) / first.sum(axis=1)
            assert hits.mean() == pytest.approx(expected, abs=5e-4)


@needs_genuine
@pytest.mark.parametrize(
    ("protocol", "ties", "hit_ratio"),
    [
        ("llara", "stable", 0.32),
        ("chronological", "stable", 0.20),
        ("chronological", "random", 0.11),
    ],
)
def test_the_next_artist_id_is_as_good_a_guess_as_documented(
    protocol: str, ties: TieRule, hit_ratio: float
) -> None:
    interactions, titles = read(GENUINE, protocol, ties)
    names = pd.read_csv(
        GENUINE / lastfm.ARTISTS, sep="\t", quoting=3, usecols=["id", "name"], encoding="utf-8"
    )
    artist_ids = names.set_index(names["name"].str.strip())["id"].loc[titles].to_numpy()
    windows = sliding_windows(interactions, 10)
    rows = ((windows.table["split"] == "test") & windows.table["is_last"]).to_numpy()
    histories = windows.cut(np.flatnonzero(rows))
    targets = windows.targets[rows]
    hits = []
    for seed in range(50):
        candidates = CandidateStream(len(titles), 20, seed, "test").draw(histories, targets)
        ids = artist_ids[candidates]
        above = np.where(ids > artist_ids[histories[:, -1:]], ids, np.iinfo(np.int64).max)
        hits.append(candidates[np.arange(len(ids)), above.argmin(axis=1)] == targets)
    assert np.mean(hits) == pytest.approx(hit_ratio, abs=0.02)
    if protocol == "llara":
        seen = np.where(histories >= 0, artist_ids[histories], 0)
        assert (artist_ids[targets] > seen.max(axis=1)).all()


def test_the_stages_of_the_shipped_experiment_find_each_others_files(
    raw: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lastfm` is a dataset and an experiment: its stages are the experiment's."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    small = ["--prepare.max_history", "3", "--prepare.num_candidates", "2", "--evaluate.ks", "[1]"]
    small += ["--recommender.max_epochs", "1", "--recommender.hidden_size", "4"]
    assert main(["prepare", "lastfm", "--source", str(raw), *small]) == 0
    assert Path("runs/lastfm/prepare/interactions.parquet").exists()
    assert main(["recommender", "lastfm", *small]) == 0
    assert Path("runs/lastfm/recommenders/sasrec/model.safetensors").exists()
