import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.checksums import Checksums
from recipes.data.prepare import prepare
from recipes.datasets import steam
from recipes.datasets.dataset import ReadyWindows
from recipes.datasets.steam import CONVERSION, Steam
from recipes.experiment import PrepareConfig

GENUINE = Path(__file__).resolve().parents[2] / ".." / "shared/data/steam"
needs_genuine = pytest.mark.skipif(not GENUINE.is_dir(), reason=f"the rows are not in {GENUINE}")

WINDOWS = [
    ("test", [0, 1], 2),
    ("train", [0, 1, 2], 3),
    ("train", [0, 1, 2, 3], 4),
    ("train", [1, 2, 3, 4], 0),  # longer histories lose their oldest item
    ("train", [1, 2, 3, 4], 2),  # does not go on: another user
    ("val", [4, 4, 4, 5, 5], 1),  # 5 pads
    ("val", [5, 5, 5, 5, 5], 1),
]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    table = pd.DataFrame(WINDOWS, columns=["split", "history", "target"])
    table.to_parquet(tmp_path / steam.EXAMPLES)
    titles = pd.DataFrame({"item_id": [1, 0, 2, 3, 4], "title": ["B", "A::A ", "C", "D", "E"]})
    titles.to_parquet(tmp_path / steam.ITEMS)
    monkeypatch.setattr(steam, "NUM_ITEMS", 5)
    monkeypatch.setattr(steam, "OFFICIAL_ROWS", {"train": 9, "val": 2, "test": 1})
    return tmp_path


def read(folder: Path) -> ReadyWindows:
    files = Steam().raw_files(folder)
    return Steam().read(PrepareConfig(dataset="steam", protocol="llara"), files)


def test_windows_that_join_have_one_user_and_padding_goes(raw: Path) -> None:
    found = read(raw)
    assert found.titles == ["A::A", "B", "C", "D", "E"]
    table = found.table
    assert table["split"].tolist() == ["train"] * 4 + ["val"] * 2 + ["test"]
    assert table["user_id"].tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert table["is_last"].tolist() == [False, False, True, True, True, True, True]
    assert [items.tolist() for items in table["history"]] == [
        *([0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]),
        *([4, 4, 4], [], [0, 1]),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop(columns="target"), "no column 'target'; it needs split, history, target"),
        (lambda t: t.drop(index=5), "1 of val, where LLaRA has 2"),
        (lambda t: t[t["split"] != "train"], "0 of train, where LLaRA has 9"),
        (lambda t: t.replace({"split": {"val": "dev"}}), "rows of split 'dev'"),
    ],
)
def test_other_rows_are_refused(raw: Path, change, reason: str) -> None:
    path = raw / steam.EXAMPLES
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(ValueError, match=reason):
        read(raw)


def test_other_games_are_refused(raw: Path) -> None:
    path = raw / steam.ITEMS
    pd.read_parquet(path).head(4).to_parquet(path)
    with pytest.raises(ValueError, match=r"LLaRA's games, item_id 0 \.\. 4"):
        read(raw)


def test_a_sample_of_the_train_windows_is_named_so_in_its_split(raw: Path) -> None:
    path = raw / steam.EXAMPLES
    table = pd.read_parquet(path).replace({"split": {"train": "train_sample4"}})
    table.to_parquet(path)
    assert read(raw).table["split"].tolist().count("train") == 4


def test_pickles_are_refused_with_the_line_that_converts_them(tmp_path: Path) -> None:
    for split, name in steam.NAMES.items():
        rows = [(history, target) for own, history, target in WINDOWS if own == split]
        frame = pd.DataFrame({"seq": [h for h, _ in rows], "next": [t for _, t in rows]})
        (tmp_path / name).write_bytes(pickle.dumps(frame))
    with pytest.raises(ValueError, match=r"train_data\.df is a pickle.*never loaded"):
        Steam().raw_files(tmp_path)
    # The line works where it is run.
    line = CONVERSION.removeprefix("python -c ").strip('"')
    subprocess.run([sys.executable, "-c", line], cwd=tmp_path, check=True)
    made = pd.read_parquet(tmp_path / steam.EXAMPLES)
    found = {split: made[made["split"] == split]["target"].tolist() for split in steam.NAMES}
    assert found == {"train": [3, 4, 0, 2], "val": [1, 1], "test": [2]}


def test_without_a_source_the_remedy_is_told() -> None:
    with pytest.raises(FileNotFoundError, match=r"prepare\.source is missing.*pickles"):
        Steam().raw_files(None)


@needs_genuine
def test_the_published_rows_give_the_published_counts(tmp_path: Path) -> None:
    config = PrepareConfig(dataset="steam", protocol="llara", source=str(GENUINE))
    prepare(config, tmp_path / "prepare", Checksums(tmp_path / "checksums.json"))
    counts = json.loads((tmp_path / "prepare/manifest.json").read_text("utf-8"))["counts"]
    assert counts["items"] == 3581
    assert (counts["windows"]["val"], counts["windows"]["test"]) == (1194, 1194)
    usable = counts["last_windows_with_history_of_3"]
    assert (usable["val"], usable["test"]) == (1184, 1186)
    histories = pd.read_parquet(tmp_path / "prepare/examples.parquet")["history"]
    assert max(items.max(initial=-1) for items in histories) < 3581
    assert np.mean([len(items) for items in histories]) > 8


def test_reference_titles_are_cut_at_the_separator_and_in_lower_case(raw: Path) -> None:
    config = PrepareConfig(dataset="steam", protocol="llara", titles="reference")
    assert Steam().read(config, Steam().raw_files(raw)).titles == ["a", "b", "c", "d", "e"]


@needs_genuine
def test_reference_titles_are_llaras() -> None:
    files = Steam().raw_files(GENUINE)
    config = PrepareConfig(dataset="steam", protocol="llara", titles="reference")
    known = pd.read_parquet(GENUINE / steam.ITEMS).sort_values("item_id")["title_llara"]
    assert Steam().read(config, files).titles == known.str.lower().str.strip().tolist()
