"""Prepared data in the forms of the library `datasets`."""

from dataclasses import replace

import datasets
import numpy as np
import pytest

from recipes.checksums import MEMORY, Checksums
from recipes.data import hub
from recipes.data.hub import from_dataset_dict, to_dataset_dict
from recipes.data.prepare import prepare
from recipes.data.splits import SPLITS, SplitName
from recipes.data.tables import PreparedData
from recipes.experiment import PrepareConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("prepare")
    config = PrepareConfig(dataset="ring", protocol="chronological", num_candidates=5)
    prepare(config, place, Checksums(place / MEMORY))
    return place


def same(one: PreparedData, other: PreparedData) -> None:
    assert one.titles == other.titles
    for name in SPLITS:
        for field, wanted in vars(one.split(name)).items():
            found = getattr(other.split(name), field)
            np.testing.assert_array_equal(found, wanted)
            assert wanted is None or found.dtype == wanted.dtype, field


def test_prepared_data_survive_the_disk(folder, tmp_path):
    to_dataset_dict(folder).save_to_disk(tmp_path / "saved")
    loaded = datasets.load_from_disk(tmp_path / "saved")
    same(PreparedData.load(folder), from_dataset_dict(loaded, max_history=10))
    first = loaded["test"][3]
    assert list(first) == ["user_id", "history", "target", "candidates", "is_last"]
    assert len(first["history"]) == 3 and first["target"] in first["candidates"]
    assert loaded["items"][first["target"]]["title"] == f"stop number {first['target']}"
    assert from_dataset_dict(loaded).split("test").histories.shape[1] == 7  # the longest one's


def test_further_draws_survive_too(folder, monkeypatch):
    data = PreparedData.load(folder)
    test = data.split("test")
    further = np.stack([test.candidates, test.candidates[:, ::-1]], axis=1)
    both = {**data.splits, "test": replace(test, further_candidates=further)}
    drawn = replace(data, splits=both)
    monkeypatch.setattr(hub.PreparedData, "load", lambda _: drawn)
    same(drawn, from_dataset_dict(to_dataset_dict(folder), max_history=10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("val"), "the dataset 'val' is missing"),
        (lambda d: d.update(test=d["test"].remove_columns("target")), "'test' has no column 'targ"),
        (lambda d: d.update(items=d["items"].select([1, 0])), "numbered 0, 1, 2"),
    ],
)
def test_what_is_not_prepared_data_is_refused(folder, change, message):
    found = to_dataset_dict(folder)
    change(found)
    with pytest.raises(ValueError, match=message):
        from_dataset_dict(found)


def test_a_history_that_does_not_fit_is_refused(folder):
    with pytest.raises(ValueError, match="max_history=2"):
        from_dataset_dict(to_dataset_dict(folder), max_history=2)


@pytest.mark.parametrize("name", ["examples", "candidates", "items", "interactions"])
def test_the_parquet_files_are_read_by_load_dataset(folder, tmp_path, name):
    path = folder / f"{name}.parquet"
    found = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path))
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path))
    assert len(found["train"]) == len(table) > 0
    if name == "examples":
        windows = found["train"].filter(lambda split: split == "test", input_columns="split")
        assert windows["target"][:] == PreparedData.load(folder).split("test").targets.tolist()


def met(data: PreparedData, name: SplitName) -> list[set[int]]:
    rows = np.arange(len(data.split(name)))
    items, lengths = data.earlier(name, rows)
    return [set(part.tolist()) for part in np.split(items, lengths.cumsum()[:-1])]


@pytest.mark.parametrize("protocol", ["leave-one-out", "temporal", "chronological"])
def test_what_a_user_has_met_in_earlier_splits_is_known_without_the_folder(protocol, tmp_path):
    # Histories show three items, of at most seven that came before.
    config = PrepareConfig(dataset="ring", protocol=protocol, num_candidates=5, max_history=3)
    prepare(config, tmp_path, Checksums(tmp_path / MEMORY))
    whole, alone = PreparedData.load(tmp_path), from_dataset_dict(to_dataset_dict(tmp_path))
    assert alone.folder is None
    for name in SPLITS:
        assert met(alone, name) == met(whole, name)
