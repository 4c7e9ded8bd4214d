import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.artifacts import read_table, write_table
from recipes.data.prepare import prepare
from recipes.data.tables import PreparedData
from recipes.experiment import PrepareConfig, SyntheticConfig

FILES = [
    "candidates.parquet",
    "examples.parquet",
    "interactions.parquet",
    "items.parquet",
    "manifest.json",
    "record.json",
]
CONFIG = PrepareConfig(dataset="synthetic", max_history=4, synthetic=SyntheticConfig(num_users=20))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_stage_writes_its_tables_with_the_agreed_columns_and_types(tmp_path: Path) -> None:
    prepare(CONFIG, tmp_path)
    assert names(tmp_path) == FILES
    columns = {
        name: read_table(tmp_path / f"{name}.parquet").dtypes.astype(str).to_dict()
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


def test_loaded_arrays_follow_the_interactions(tmp_path: Path) -> None:
    prepare(CONFIG, tmp_path)
    data = PreparedData.load(tmp_path)
    interactions = read_table(tmp_path / "interactions.parquet")
    assert data.titles == read_table(tmp_path / "items.parquet")["title"].tolist()
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


def test_a_history_item_may_be_a_negative_where_items_recur(tmp_path: Path) -> None:
    prepare(CONFIG, tmp_path)
    split = PreparedData.load(tmp_path).split("train")
    negatives = np.where(split.candidates == split.targets[:, None], -2, split.candidates)
    assert (negatives[:, :, None] == split.histories[:, None, :]).any()
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["negatives"] == "all items but the target"


def test_the_manifest_counts_what_was_written(tmp_path: Path) -> None:
    prepare(CONFIG, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    counts, examples = manifest["counts"], read_table(tmp_path / "examples.parquet")
    assert counts["interactions"] == sum(counts["windows"].values()) == len(examples)
    assert counts["users"] == {"train": 16, "val": 2, "test": 2}
    usable = examples["history"].map(len) >= 3
    expected = examples[usable]["split"].value_counts().to_dict()
    assert counts["windows_with_history_of_3"] == expected
    assert manifest["config"]["max_history"] == 4
    assert (manifest["dataset"], manifest["raw_sha256"]) == ("synthetic", {})


def test_a_second_call_writes_nothing(tmp_path: Path) -> None:
    record = prepare(CONFIG, tmp_path)
    before = written(tmp_path)
    assert prepare(CONFIG, tmp_path) == record
    assert written(tmp_path) == before


def test_a_changed_config_is_prepared_anew(tmp_path: Path) -> None:
    first = prepare(CONFIG, tmp_path)
    second = prepare(replace(CONFIG, candidate_seed=7), tmp_path)
    assert second.fingerprint != first.fingerprint
    changed = {name for name in first.files if first.files[name] != second.files[name]}
    assert changed == {"candidates.parquet", "manifest.json"}
    assert set(read_table(tmp_path / "candidates.parquet")["seed"]) == {7}


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
    assert names(tmp_path) == ["interactions.parquet", "items.parquet"]
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
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_changes(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    prepare(CONFIG, tmp_path)
    before = written(tmp_path)
    with pytest.raises(ValueError, match=message):
        prepare(replace(CONFIG, **change), tmp_path)
    assert written(tmp_path) == before


def test_more_candidates_than_the_catalogue_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_candidates=500"):
        prepare(replace(CONFIG, num_candidates=500), tmp_path)


def test_a_source_without_the_raw_files_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, dataset="lastfm", source=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--source"):
        prepare(config, tmp_path / "prepare")


def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    prepare(CONFIG, tmp_path)
    candidates = read_table(tmp_path / "candidates.parquet")
    write_table(tmp_path / "candidates.parquet", candidates[:-1])
    with pytest.raises(ValueError, match="do not have the same rows of test"):
        PreparedData.load(tmp_path)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    prepare(CONFIG, tmp_path)
    with pytest.raises(ValueError, match="split='valid': choose one of train, val, test"):
        PreparedData.load(tmp_path).split("valid")  # type: ignore[arg-type]
