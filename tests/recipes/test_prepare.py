import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.artifacts import read_json, read_table, write_table
from recipes.checksums import Checksums
from recipes.data import prepare as preparing
from recipes.data.padding import PADDING
from recipes.data.prepare import check_config
from recipes.data.sequences import Windows, sliding_windows
from recipes.data.tables import PreparedData
from recipes.datasets.dataset import Dataset, Interactions, ReadyWindows
from recipes.experiment import PrepareConfig, SyntheticConfig
from recipes.records import Record
from recipes.registry import Registry
from recipes.stages import UNFINISHED

FILES = [
    "candidates.parquet",
    "examples.parquet",
    "interactions.parquet",
    "items.parquet",
    "manifest.json",
    "record.json",
]
CONFIG = PrepareConfig(dataset="synthetic", max_history=4, synthetic=SyntheticConfig(num_users=20))


def prepare(config: PrepareConfig, folder: Path) -> Record:
    """The stage; checksums are remembered beside the folder, as in a run."""
    return preparing.prepare(config, folder, Checksums(folder.with_name("checksums.json")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared; nobody changes it."""
    made = tmp_path_factory.mktemp("run") / "prepare"
    prepare(CONFIG, made)
    return made


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same to be changed."""
    return shutil.copytree(folder, tmp_path / "prepare")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_stage_writes_its_tables_with_the_agreed_columns_and_types(folder: Path) -> None:
    assert names(folder) == FILES
    columns = {
        name: read_table(folder / f"{name}.parquet").dtypes.astype(str).to_dict()
        for name in ("interactions", "items", "examples", "candidates")
    }
    integers = {"user_id": "int64", "item_id": "int64", "position": "int64"}
    assert columns["interactions"] == integers | {"split": "str", "timestamp": "Int64"}
    assert columns["items"] == {"item_id": "int64", "title": "str"}
    assert columns["examples"] == {
        "split": "str",
        "row": "int64",
        "user_id": "int64",
        "history": "object",
        "target": "int64",
        "is_last": "bool",
    }
    candidates = {"split": "str", "row": "int64", "candidates": "object", "seed": "int64"}
    assert columns["candidates"] == candidates


def test_loaded_arrays_follow_the_interactions(folder: Path) -> None:
    data = PreparedData.load(folder)
    interactions = read_table(folder / "interactions.parquet")
    assert data.titles == read_table(folder / "items.parquet")["title"].tolist()
    assert data.num_items == len(data.titles)
    for name, users in (("train", 16), ("val", 2), ("test", 2)):
        split = data.split(name)  # type: ignore[arg-type]
        table = interactions[interactions["split"] == name]
        assert split.user_ids.tolist() == table["user_id"].tolist()
        assert split.targets.tolist() == table["item_id"].tolist()
        assert split.history_lengths.tolist() == table["position"].clip(upper=4).tolist()
        assert split.is_last.sum() == users == table["user_id"].nunique()
        for row, (_, own) in enumerate(table.iterrows()):
            seen = table[table["user_id"] == own["user_id"]]["item_id"].tolist()
            history = seen[: own["position"]][-4:]
            assert split.histories[row].tolist() == [-1] * (4 - len(history)) + history
        assert split.candidates.shape == (len(split), 20)
        assert ((split.candidates == split.targets[:, None]).sum(axis=1) == 1).all()


def test_a_history_item_may_be_a_negative_where_items_recur(folder: Path) -> None:
    split = PreparedData.load(folder).split("train")
    negatives = np.where(split.candidates == split.targets[:, None], -2, split.candidates)
    assert (negatives[:, :, None] == split.histories[:, None, :]).any()
    manifest = read_json(folder / "manifest.json")
    assert manifest["negatives"] == "all items but the target"


def test_the_manifest_counts_what_was_written(folder: Path) -> None:
    manifest = read_json(folder / "manifest.json")
    counts, examples = manifest["counts"], read_table(folder / "examples.parquet")
    assert counts["interactions"] == sum(counts["windows"].values()) == len(examples)
    assert counts["users"] == {"train": 16, "val": 2, "test": 2}
    usable = examples["history"].map(len) >= 3
    expected = examples[usable]["split"].value_counts().to_dict()
    assert counts["windows_with_history_of_3"] == expected
    assert manifest["config"]["max_history"] == 4
    assert (manifest["dataset"], manifest["raw_sha256"]) == ("synthetic", {})


def test_a_second_call_writes_nothing(copy: Path) -> None:
    record = prepare(CONFIG, copy)
    before = written(copy)
    assert prepare(CONFIG, copy) == record
    assert written(copy) == before


def test_a_changed_config_is_prepared_anew(copy: Path) -> None:
    first = prepare(CONFIG, copy)
    second = prepare(replace(CONFIG, candidate_seed=7), copy)
    assert second.fingerprint != first.fingerprint
    changed = {name for name in first.files if first.files[name] != second.files[name]}
    assert changed == {"candidates.parquet", "manifest.json"}
    assert set(read_table(copy / "candidates.parquet")["seed"]) == {7}


def test_the_result_is_the_same_on_every_run(tmp_path: Path) -> None:
    first = prepare(CONFIG, tmp_path / "a")
    assert prepare(CONFIG, tmp_path / "b").files == first.files


def test_a_killed_write_leaves_no_partial_file_and_the_next_run_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table = pq.ParquetWriter.write_table

    def killed(writer: pq.ParquetWriter, table: pa.Table, **options: object) -> None:
        write_table(writer, table, **options)
        if "history" in table.column_names:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(CONFIG, tmp_path)
    (place,) = (tmp_path / UNFINISHED).iterdir()
    assert names(place) == ["interactions.parquet", "items.parquet"]
    with pytest.raises(FileNotFoundError, match="python -m recipes prepare"):
        PreparedData.load(tmp_path)
    prepare(CONFIG, tmp_path)
    assert names(tmp_path) == FILES
    assert len(PreparedData.load(tmp_path).split("train")) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_candidates": 1}, "num_candidates=1"),
        ({"candidate_seed": -3}, "candidate_seed=-3"),
        ({"max_history": 0}, "max_history=0"),
        ({"train_share": 0.0}, r"prepare\.train_share=0\.0 must be in \(0, 1\]"),
        (
            {"synthetic": SyntheticConfig(num_kinds=5)},
            r"synthetic\.num_kinds=5 must be in",
        ),
        ({"synthetic": SyntheticConfig(num_users=9)}, r"num_users=9 must be at least 10"),
        ({"train_share": 1.5}, r"prepare\.train_share=1\.5"),
        (
            {"dataset": "movies"},
            "there is no dataset 'movies'; known are lastfm, movielens, steam, ",
        ),
        ({"protocol": "weekly"}, "prepare.protocol='weekly': the dataset synthetic knows"),
        ({"source": "somewhere"}, "prepare.source='somewhere': the synthetic dataset has no files"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_changes(
    copy: Path, change: dict, message: str
) -> None:
    before = written(copy)
    with pytest.raises(ValueError, match=message):
        prepare(replace(CONFIG, **change), copy)
    assert written(copy) == before


def test_more_candidates_than_the_catalogue_has_are_not_drawn(tmp_path: Path) -> None:
    prepare(replace(CONFIG, num_candidates=500), tmp_path)
    data = PreparedData.load(tmp_path)
    assert data.undrawn is not None and data.undrawn.startswith("num_candidates=500 asks for 499")
    assert data.split("val").candidates.shape == (len(data.split("val")), 0)


def test_a_source_without_the_raw_files_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, dataset="lastfm", source=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--source"):
        prepare(config, tmp_path / "prepare")


def test_tables_that_do_not_belong_together_are_refused(copy: Path) -> None:
    candidates = read_table(copy / "candidates.parquet")
    write_table(copy / "candidates.parquet", candidates[:-1])
    with pytest.raises(ValueError, match="do not have the same rows of test"):
        PreparedData.load(copy)


def test_an_unknown_split_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="split='valid': choose one of train, val, test"):
        PreparedData.load(folder).split("valid")  # type: ignore[arg-type]


# ------------------------------------------------------------------ raw files


class Steps(Dataset):
    """Twelve users; the raw file holds how far each user steps."""

    name = "steps"
    summary = "for tests"
    protocols = ("llara",)

    def raw_files(self, source: Path | None) -> dict[str, Path]:
        assert source is not None
        return {"steps.txt": source / "steps.txt"}

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions:
        step = int(files["steps.txt"].read_text())
        users, positions = (array.ravel() for array in np.indices((12, 5)))
        columns = {"user_id": users, "item_id": (users + step * positions) % 30}
        columns |= {"position": positions, "timestamp": users}
        return Interactions(pd.DataFrame(columns), [f"title {item}" for item in range(30)])


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepareConfig:
    """The dataset `steps`, its raw file in `tmp_path / "raw"`."""
    monkeypatch.setattr(preparing, "DATASETS", Registry("dataset", Steps()))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "steps.txt").write_text("1")
    return replace(CONFIG, dataset="steps", source=str(tmp_path / "raw"))


def targets(folder: Path) -> list[int]:
    return PreparedData.load(folder).split("train").targets.tolist()


def test_raw_files_replaced_in_place_are_prepared_anew(
    steps: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, before = prepare(steps, tmp_path / "prepare"), targets(tmp_path / "prepare")
    (tmp_path / "raw" / "steps.txt").write_text("3")
    second = prepare(steps, tmp_path / "prepare")
    assert second.fingerprint != first.fingerprint
    assert targets(tmp_path / "prepare") != before
    assert "was made with another steps.txt" in capsys.readouterr().out
    manifest = read_json(tmp_path / "prepare" / "manifest.json")
    assert manifest["raw_sha256"] == second.inputs != first.inputs


def test_raw_files_in_another_place_are_the_same_data(steps: PrepareConfig, tmp_path: Path) -> None:
    first = prepare(steps, tmp_path / "prepare")
    before = written(tmp_path / "prepare")
    (tmp_path / "raw").rename(tmp_path / "moved")
    again = prepare(replace(steps, source=str(tmp_path / "moved")), tmp_path / "prepare")
    assert again == first
    assert written(tmp_path / "prepare") == before


def test_a_new_version_of_the_stage_is_prepared_anew(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(CONFIG, copy)
    monkeypatch.setattr(preparing, "VERSION", preparing.VERSION + 1)
    second = prepare(CONFIG, copy)
    assert second.fingerprint != first.fingerprint
    assert second.files == first.files


# ------------------------------------------------------------------ a share of the train users


def users(folder: Path) -> dict[str, list[int]]:
    data = PreparedData.load(folder)
    return {name: split.user_ids.tolist() for name, split in data.splits.items()}


def test_a_smaller_share_keeps_some_of_the_train_users_that_a_larger_one_keeps(
    folder: Path, tmp_path: Path
) -> None:
    kept = {1.0: set(users(folder)["train"])}
    for share in (0.5, 0.25, 0.01):
        prepare(replace(CONFIG, train_share=share), tmp_path / "prepare")
        kept[share] = set(users(tmp_path / "prepare")["train"])
    assert [len(own) for own in kept.values()] == [16, 8, 4, 1]  # at least one
    assert kept[0.01] < kept[0.25] < kept[0.5] < kept[1.0]


def test_a_share_leaves_validation_and_test_as_they_are(folder: Path, tmp_path: Path) -> None:
    prepare(replace(CONFIG, train_share=0.5), tmp_path / "prepare")
    whole, half = (PreparedData.load(place) for place in (folder, tmp_path / "prepare"))
    assert half.titles == whole.titles
    for name in ("val", "test"):
        one, same = vars(half.splits[name]), vars(whole.splits[name])
        for field in one:
            np.testing.assert_array_equal(one[field], same[field], strict=True)
    # Kept users keep all their windows, in the same order.
    kept = np.isin(whole.split("train").user_ids, half.split("train").user_ids)
    for field in ("user_ids", "histories", "targets", "is_last"):
        expected = getattr(whole.split("train"), field)[kept]
        np.testing.assert_array_equal(getattr(half.split("train"), field), expected)


# ------------------------------------------------------------------ what is read back


@pytest.mark.parametrize("written_at_once", [7, 2**20])
def test_histories_read_back_are_those_that_were_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_at_once: int
) -> None:
    cut: list[Windows] = []

    def spy(*given) -> Windows:
        cut.append(sliding_windows(*given))
        return cut[0]

    monkeypatch.setattr(preparing, "sliding_windows", spy)
    monkeypatch.setattr(preparing, "WRITTEN_AT_ONCE", written_at_once)
    prepare(CONFIG, tmp_path / "prepare")
    (windows,) = cut
    found = PreparedData.load(tmp_path / "prepare").splits.values()
    histories = np.concatenate([split.histories for split in found])
    np.testing.assert_array_equal(
        histories, windows.cut(np.arange(len(windows.targets))), strict=True
    )
    lengths = np.concatenate([split.history_lengths for split in found])
    np.testing.assert_array_equal(lengths, windows.lengths, strict=True)
    np.testing.assert_array_equal((histories != PADDING).sum(axis=1), lengths)


def test_parts_of_a_table_make_no_difference(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "WRITTEN_AT_ONCE", 7)
    prepare(CONFIG, tmp_path / "prepare")
    for name in ("interactions", "examples", "candidates"):
        one, same = (
            read_table(place / f"{name}.parquet") for place in (folder, tmp_path / "prepare")
        )
        pd.testing.assert_frame_equal(one, same)


# ------------------------------------------------------------------ windows that come ready


class Ready(Dataset):
    """Windows as somebody else cut them; each test gives its own rows."""

    name = "ready"
    summary = "for tests"
    protocols = ("llara",)

    def __init__(self, rows: list[tuple[str, int, list[int], int, bool]]) -> None:
        self.table = pd.DataFrame(
            rows, columns=["split", "user_id", "history", "target", "is_last"]
        )

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> ReadyWindows:
        return ReadyWindows(self.table, [f"title {item}" for item in range(12)])


ROWS = [
    ("test", 8, [1, 2], 3, True),
    ("train", 5, [], 4, False),
    ("train", 5, [4], 6, False),
    ("train", 5, [4, 6, 1, 0, 9], 7, True),
    ("val", 2, [7, 3], 8, True),
    ("train", 1, [3, 5, 4], 2, True),
    ("train", 9, [3], 0, True),
]
READY = replace(CONFIG, dataset="ready", num_candidates=6)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the dataset `ready` of some rows."""

    def made(*rows: tuple[str, int, list[int], int, bool]) -> None:
        monkeypatch.setattr(preparing, "DATASETS", Registry("dataset", Ready(list(rows))))

    return made


def test_windows_that_come_ready_become_the_examples_they_are(
    publish: Callable[..., None], tmp_path: Path
) -> None:
    publish(*ROWS)
    record = prepare(READY, tmp_path / "prepare")
    assert "interactions.parquet" not in record.files
    assert names(tmp_path / "prepare") == [name for name in FILES if "interactions" not in name]
    data = PreparedData.load(tmp_path / "prepare")
    train, val, test = (data.split(name) for name in ("train", "val", "test"))
    assert train.user_ids.tolist() == [5, 5, 5, 1, 9]
    assert train.targets.tolist() == [4, 6, 7, 2, 0]
    assert train.histories.tolist() == [  # four items at most
        [-1, -1, -1, -1],
        [-1, -1, -1, 4],
        [6, 1, 0, 9],
        [-1, 3, 5, 4],
        [-1, -1, -1, 3],
    ]
    assert train.is_last.tolist() == [False, False, True, True, True]
    assert (val.user_ids.tolist(), val.targets.tolist()) == ([2], [8])
    assert val.histories.tolist() == [[-1, -1, 7, 3]]
    assert (test.user_ids.tolist(), test.targets.tolist()) == ([8], [3])
    counts = read_json(tmp_path / "prepare" / "manifest.json")["counts"]
    assert counts["interactions"] == 7
    assert counts["users"] == {"train": 3, "val": 1, "test": 1}
    assert counts["windows"] == {"train": 5, "val": 1, "test": 1}


def test_ready_windows_get_candidates_outside_the_history_where_no_item_recurs(
    publish: Callable[..., None], tmp_path: Path
) -> None:
    publish(*ROWS)
    prepare(READY, tmp_path / "prepare")
    manifest = read_json(tmp_path / "prepare" / "manifest.json")
    assert manifest["negatives"] == "all items but the target and the visible history"
    for split in PreparedData.load(tmp_path / "prepare").splits.values():
        assert split.candidates.shape == (len(split), 6)
        assert ((split.candidates == split.targets[:, None]).sum(axis=1) == 1).all()
        assert not (split.candidates[:, :, None] == split.histories[:, None, :]).any()


def test_earlier_items_of_ready_windows_are_earlier_targets_and_the_visible_history(
    publish: Callable[..., None], tmp_path: Path
) -> None:
    publish(*ROWS)
    prepare(READY, tmp_path / "prepare")
    data = PreparedData.load(tmp_path / "prepare")
    values, lengths = data.earlier("train", np.array([2, 0, 1, 3]))
    assert np.split(values, lengths.cumsum())[0].tolist() == [4, 6, 6, 1, 0, 9]
    assert lengths.tolist() == [6, 0, 2, 3]
    assert values[6:].tolist() == [4, 4, 3, 5, 4]
    assert data.earlier("val", np.array([0]))[0].tolist() == [7, 3]


def test_ready_windows_do_not_tell_all_that_a_user_meets(
    publish: Callable[..., None], tmp_path: Path
) -> None:
    publish(*ROWS)
    with pytest.raises(ValueError, match="negatives='whole': this dataset gives windows"):
        prepare(replace(READY, negatives="whole"), tmp_path / "prepare")


@pytest.mark.parametrize(
    "row",
    [
        ("train", 7, [2, 3, 2], 3, True),  # the target is in its own history
        ("train", 9, [3, 0], 0, True),  # an earlier window has the same target
    ],
)
def test_ready_windows_in_which_an_item_recurs_have_negatives_from_the_history_too(
    publish: Callable[..., None], tmp_path: Path, row: tuple[str, int, list[int], int, bool]
) -> None:
    publish(*ROWS, row)
    prepare(READY, tmp_path / "prepare")
    manifest = read_json(tmp_path / "prepare" / "manifest.json")
    assert manifest["negatives"] == "all items but the target"


def test_a_share_of_the_train_users_of_ready_windows_is_kept_whole(
    publish: Callable[..., None], tmp_path: Path
) -> None:
    publish(*ROWS)
    prepare(replace(READY, train_share=0.67), tmp_path / "prepare")
    found = users(tmp_path / "prepare")
    kept = set(found["train"])
    assert len(kept) == 2
    everyone = [("train", user) for user in (5, 5, 5, 1, 9)]
    assert found["train"] == [user for _, user in everyone if user in kept]
    assert (found["val"], found["test"]) == ([2], [8])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("valid", 6, [1], 2, True), "windows of split 'valid': name splits train, val, test"),
        (("val", 6, [1], 12, True), "item ids from 0 to 12, but there are 12 titles"),
        (("val", 6, [1, -1], 2, True), "item ids from -1 to 9"),
    ],
)
def test_ready_windows_of_unknown_splits_or_items_are_refused(
    publish: Callable[..., None],
    tmp_path: Path,
    row: tuple[str, int, list[int], int, bool],
    message: str,
) -> None:
    publish(*ROWS, row)
    with pytest.raises(ValueError, match=message):
        prepare(READY, tmp_path / "prepare")
    assert not (tmp_path / "prepare").exists()


def test_another_datasets_interactions_are_no_file_of_ready_windows(
    publish: Callable[..., None], copy: Path
) -> None:
    publish(*ROWS)
    record = prepare(READY, copy)
    assert "interactions.parquet" not in record.files
    assert not (copy / "interactions.parquet").exists()


def test_a_config_is_checked_without_reading_anything() -> None:
    check_config(replace(CONFIG, dataset="lastfm", source="nowhere"))
