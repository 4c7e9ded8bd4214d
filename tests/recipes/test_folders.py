"""Raw files are found in the named folder, or in a folder in it."""

from pathlib import Path

import pytest

from recipes.datasets import DATASETS
from recipes.datasets.folders import folder_with

NAMES = ("a.dat", "b.dat")


def filled(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_files_lie_in_the_folder_or_at_most_two_levels_down(tmp_path):
    deep = filled(tmp_path / "raw" / "one", *NAMES)
    filled(tmp_path / "raw" / "other", NAMES[0])
    filled(tmp_path / "runs" / "one" / "prepare", *NAMES)
    assert folder_with(tmp_path, NAMES) == deep
    assert folder_with(deep, NAMES) == deep


def test_a_folder_with_some_of_the_files_is_the_one_that_lacks_the_others(tmp_path):
    filled(tmp_path / "raw", *NAMES)
    assert folder_with(filled(tmp_path, NAMES[1]), NAMES) == tmp_path
    empty = tmp_path / "nothing"
    assert folder_with(empty, NAMES) == empty


def test_several_folders_are_refused(tmp_path):
    for name in ("one", "two"):
        filled(tmp_path / name, *NAMES)
    with pytest.raises(ValueError, match=r"prepare.source=.* holds a.dat, b.dat in several"):
        folder_with(tmp_path, NAMES)


def test_one_folder_serves_several_datasets(tmp_path):
    files = {
        "movielens": ("u.data", "u.item"),
        "lastfm": ("artists.dat", "user_taggedartists.dat"),
        "steam": ("examples.parquet", "items.parquet"),
        "steam-reviews": ("steam_reviews.json.gz", "steam_games.json.gz"),
    }
    for name, own in files.items():
        filled(tmp_path / name, *own)
        found = DATASETS[name].raw_files(tmp_path)
        assert {path.parent for path in found.values()} == {tmp_path / name}
        assert found.keys() == set(own)


def test_one_folder_that_lacks_a_file_is_named_by_the_message(tmp_path):
    half = filled(tmp_path / "raw" / "steam", "examples.parquet")
    assert folder_with(tmp_path, ("examples.parquet", "items.parquet")) == half
    with pytest.raises(FileNotFoundError, match=r"raw/steam/items.parquet is missing"):
        DATASETS["steam"].raw_files(tmp_path)
    filled(tmp_path / "other", "items.parquet")
    assert folder_with(tmp_path, ("examples.parquet", "items.parquet")) == tmp_path


def test_what_stages_have_written_is_no_raw_file(tmp_path):
    tables = ("examples.parquet", "items.parquet")
    filled(tmp_path / "run" / "prepare", *tables, "record.json")
    filled(tmp_path / "prepare" / ".unfinished", *tables)
    assert folder_with(tmp_path, tables) == tmp_path
    raw = filled(tmp_path / "raw", *tables)
    assert folder_with(tmp_path, tables) == raw


def test_links_to_one_folder_are_one_folder(tmp_path):
    real = filled(tmp_path / "ml-100k", *NAMES)
    (tmp_path / "newest").symlink_to(real)
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    assert folder_with(tmp_path, NAMES) == real
    outside = tmp_path / "sources"
    outside.mkdir()
    (outside / "linked").symlink_to(real)
    assert folder_with(outside, NAMES) == outside / "linked"
