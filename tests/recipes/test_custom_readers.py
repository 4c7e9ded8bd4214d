"""The readers of `custom` against naive ones: nothing is lost, whatever a file holds."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.datasets.custom import Custom
from recipes.datasets.dataset import Interactions
from recipes.datasets.sources import json_lines
from recipes.datasets.sources.delimited import Delimited
from recipes.datasets.sources.distinct import distinct
from recipes.datasets.sources.json_lines import JsonLines
from recipes.datasets.sources.source import Column, Source
from recipes.experiment import CustomConfig, PrepareConfig

QUICK = settings(max_examples=60, deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
AWKWARD = st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", "a,b", ' "x" ', "\u2028", "NA", ""])


def texts(source: Source, names: Sequence[str]) -> dict[str, list[str]]:
    """Each column's values as text, by a way of its own."""
    found = {}
    for name, column in source.read(names).items():
        codes, values = distinct(column)
        found[name] = [values[code].as_py() for code in codes.tolist()]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


# ------------------------------------------------------------------ CSV


@QUICK
@given(rows=st.lists(st.tuples(TEXT | AWKWARD, TEXT | AWKWARD, TEXT), min_size=1, max_size=8))
def test_what_python_writes_as_csv_is_read_back(folder: Path, rows) -> None:
    path = folder / "round.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("a", "b", "c"), *rows])
    found = texts(Delimited(path, "utf-8"), ["c", "a"])
    assert found == {"c": [row[2] for row in rows], "a": [row[0] for row in rows]}


@QUICK
@given(content=st.text(st.sampled_from('ab",;\n\r '), max_size=30))
def test_any_text_is_read_as_python_reads_it_or_refused(folder: Path, content: str) -> None:
    path = folder / "any.csv"
    path.write_bytes(f"a,b\n{content}".encode())
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except csv.Error:
        rows = []
    if len(rows) > 1 and all(len(row) == 2 for row in rows):
        found = texts(Delimited(path, "utf-8"), ["a", "b"])
        assert list(zip(found["a"], found["b"], strict=True)) == list(map(tuple, rows[1:]))
    else:
        with pytest.raises(ValueError, match="any.csv"):
            texts(Delimited(path, "utf-8"), ["a", "b"])


def test_the_line_of_a_row_counts_the_breaks_in_quotes_before_it(folder: Path) -> None:
    path = folder / "lines.csv"
    path.write_bytes(b'a,b\r\n\r\n1,"x\r\ny"\r\n2,z\r\n\r\n"3\n",\n')
    where = Delimited(path, "utf-8").read(["a"])["a"].where
    assert [where(row) for row in range(3)] == [f"{path}, line {n}" for n in (3, 5, 7)]


def test_a_value_longer_than_a_block_of_csv_is_kept(folder: Path) -> None:
    path = folder / "long.csv"
    long = "x" * 300_000
    path.write_text(f'a,b\n"{long}",y\n', encoding="utf-8")
    assert texts(Delimited(path, "utf-8"), ["a"]) == {"a": [long]}
    assert csv.field_size_limit() == 131_072


# ------------------------------------------------------------------ JSON lines

NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = TEXT | AWKWARD | NUMBERS | st.none()


def naive(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return (
            f"{value:e}"
            if abs(value) >= 2**53
            else f"{value:.0f}".removeprefix("-" if value == 0 else "")
        )
    return str(value)


@QUICK
@given(
    columns=st.lists(
        st.one_of(*(st.lists(kind, min_size=4, max_size=4) for kind in (TEXT, NUMBERS, VALUES))),
        min_size=2,
        max_size=2,
    ),
    is_ascii=st.booleans(),
)
def test_fast_and_exact_reading_of_json_give_the_same_text(folder, columns, is_ascii) -> None:
    path = folder / "any.jsonl"
    rows = [dict(zip(("a", "b"), row, strict=True)) for row in zip(*columns, strict=True)]
    lines = [json.dumps(row, ensure_ascii=is_ascii) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    expected = {name: [naive(row[name]) for row in rows] for name in ("a", "b")}
    source = JsonLines(path, "utf-8")
    exact = source._exact([f"{line}\n" for line in lines], 1, ["a", "b"])
    assert texts(source, ["a", "b"]) == expected
    assert [array.to_pylist() for array in exact] == list(expected.values())


def test_blocks_of_json_are_read_one_by_one(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 30)
    rows = [{"a": n if n % 7 else float(n), "b": f"item {n % 3}"} for n in range(50)]
    path = folder / "blocks.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    column = JsonLines(path, "utf-8").read(["a"])["a"]
    assert texts(JsonLines(path, "utf-8"), ["a"])["a"] == [naive(row["a"]) for row in rows]
    assert column.where(40) == f"{path}, line 81"


# ------------------------------------------------------------------ the library datasets

ROWS = {
    "user_id": ["007", "7", "007"],
    "item_id": [1, 2, 2],
    "timestamp": [30, 20, 10],
    "title": ["One", "Two", "Two"],
}


def interactions(source: Path, **fields) -> Interactions:
    config = PrepareConfig(dataset="custom", source=str(source), custom=CustomConfig(**fields))
    config.protocol = "chronological"
    dataset = Custom()
    assert dataset.raw_files(source)
    return dataset.read(config, dataset.raw_files(source))


def pairs(found: Interactions) -> list[tuple[str, str]]:
    assert found.user_keys is not None and found.item_keys is not None
    users, items = found.table["user_id"].tolist(), found.table["item_id"].tolist()
    return [(found.user_keys[u], found.item_keys[i]) for u, i in zip(users, items, strict=True)]


WHOLE = [("007", "1"), ("7", "2"), ("007", "2")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def in_memory() -> datasets.Dataset:
    return datasets.Dataset.from_dict(ROWS)


def saved_whole(folder: Path) -> None:
    in_memory().save_to_disk(folder)


def saved_shuffled(folder: Path) -> None:
    reverse = datasets.Dataset.from_dict({name: column[::-1] for name, column in ROWS.items()})
    reverse.select([2, 1, 0]).save_to_disk(folder)


def saved_splits(folder: Path) -> None:
    datasets.DatasetDict(train=in_memory(), test=in_memory().select([0])).save_to_disk(folder)


def two_parquet_files(folder: Path) -> None:
    folder.mkdir()
    in_memory().select([0]).to_parquet(folder / "part-0.parquet")
    in_memory().select([1, 2]).to_parquet(folder / "part-1.parquet")


def two_csv_files(folder: Path) -> None:
    folder.mkdir()
    in_memory().select([0, 1]).to_csv(folder / "part-0.csv")
    in_memory().select([2]).to_csv(folder / "part-1.csv")


@pytest.mark.parametrize(
    "write", [saved_whole, saved_shuffled, saved_splits, two_parquet_files, two_csv_files]
)
def test_a_folder_that_datasets_reads_is_read(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "data")
    found = interactions(tmp_path / "data")
    assert pairs(found) == WHOLE
    assert found.table["timestamp"].tolist() == [30_000, 20_000, 10_000]
    assert found.titles == ["One", "Two"]


def test_a_split_is_named(tmp_path: Path) -> None:
    saved_splits(tmp_path / "data")
    assert pairs(interactions(tmp_path / "data", split="test")) == WHOLE[:1]
    message = r"prepare\.custom\.split='dev': .* has the splits train, test; name one"
    with pytest.raises(ValueError, match=message):
        interactions(tmp_path / "data", split="dev")


def test_several_splits_are_joined(tmp_path: Path) -> None:
    saved_splits(tmp_path / "data")
    assert pairs(interactions(tmp_path / "data", split="test+train")) == WHOLE[:1] + WHOLE


def csv_files(folder: Path, *contents: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        path = folder / f"part-{number}.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        os.utime(path, (1e9, 1e9))
    return folder


def test_a_folder_is_read_anew_though_its_files_bear_the_times_of_others(tmp_path: Path) -> None:
    for user in ("a", "b"):
        rows = f"user,item,time\n{user},x,1\n"
        assert pairs(interactions(csv_files(tmp_path / "data", rows, rows))) == [(user, "x")] * 2


def test_a_folder_of_csv_may_have_any_separator_and_encoding(tmp_path: Path) -> None:
    rows = "user;item;time\n\u00e9,1;x;1\n".encode("latin-1")
    found = interactions(csv_files(tmp_path / "data", rows, rows), encoding="latin-1")
    assert pairs(found) == [("\u00e9,1", "x")] * 2


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ('user,item,time\nb,"x"y,1\n', "part-1.csv, line 2: quotes do not match"),
        ("user,item,time\nb,y,1\nb,y\n", "part-1.csv, line 3: 2 values, where the header has 3"),
        ("user,item,date\nb,y,1\n", "part-1.csv, line 1: the columns date, item, user, where .*-0"),
        ("user;item;time\nb;y;1\n", "part-1.csv, line 1: the columns .* or another separator"),
        ("", "part-1.csv is empty"),
    ],
)
def test_each_file_of_a_folder_of_csv_is_checked(tmp_path: Path, second: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        interactions(csv_files(tmp_path / "data", "user,item,time\na,x,1\n", second))


def test_a_value_of_datasets_is_refused_with_its_row(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS | {"item_id": [1, None, 2]}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"data, row 1: column 'item_id' is empty"):
        interactions(tmp_path / "data")


def test_a_folder_that_is_damaged_or_mixed_is_refused(tmp_path: Path) -> None:
    saved_whole(tmp_path / "data")
    (tmp_path / "data" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="is no whole folder of `save_to_disk`"):
        interactions(tmp_path / "data")
    two_csv_files(tmp_path / "mixed")
    in_memory().to_parquet(tmp_path / "mixed" / "more.parquet")
    with pytest.raises(ValueError, match=r"holds tables of several kinds, \.csv and \.parquet"):
        interactions(tmp_path / "mixed")


def test_a_name_that_cannot_be_fetched_is_one_line(monkeypatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'shop/visits' on the Hub\n(offline)")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"prepare\.source='shop/visits' is no file.*Couldn't re"):
        Custom().raw_files(Path("shop/visits"))


def test_the_files_of_a_hub_name_are_those_that_datasets_keeps(monkeypatch, tmp_path: Path) -> None:
    two_parquet_files(tmp_path / "local")
    real = datasets.load_dataset

    def load(name: str, **options):
        assert name == "shop/visits"
        return real(str(tmp_path / "local"), **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    files = Custom().raw_files(Path("shop/visits"))
    assert files and all(path.suffix == ".arrow" for path in files.values())
    assert pairs(interactions(Path("shop/visits"))) == WHOLE


# ------------------------------------------------------------------ distinct values


@QUICK
@given(values=st.lists(st.sampled_from([None, "a", "b", ""]), min_size=1, max_size=9))
def test_distinct_values_are_numbered_by_first_appearance(values: list[str | None]) -> None:

    for column in (
        pa.chunked_array([values], pa.string()),
        pa.chunked_array([values[:1], values[1:]], pa.string()),
    ):
        codes, known = distinct(Column("a", column, str))
        order = list(dict.fromkeys(value for value in values if value is not None))
        assert known.to_pylist() == order
        assert codes.tolist() == [-1 if v is None else order.index(v) for v in values]
        assert codes.dtype == np.int64
