"""The dataset `custom`: what a file becomes, and what is refused with line, value and remedy."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.artifacts import read_json
from recipes.checksums import Checksums
from recipes.data.prepare import check_config, prepare
from recipes.datasets.custom import Custom
from recipes.datasets.dataset import Interactions
from recipes.experiment import CustomConfig, PrepareConfig

HEADER = "user,item,time,title\n"


def config(source: Path | None, *, min_rating: float | None = None, **fields: Any) -> PrepareConfig:
    return PrepareConfig(
        dataset="custom",
        protocol="chronological",
        source=None if source is None else str(source),
        min_rating=min_rating,
        custom=CustomConfig(**fields),
    )


def read(source: Path, **fields: Any) -> Interactions:
    own = config(source, **fields)
    check_config(own)
    dataset = Custom()
    return dataset.read(own, dataset.raw_files(source))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(found: Interactions) -> list[tuple[str, str, int, str]]:
    """User, item, milliseconds and title of each row, in file order."""
    assert found.user_keys is not None and found.item_keys is not None
    columns = (found.table[name].tolist() for name in ("user_id", "item_id", "timestamp"))
    return [
        (found.user_keys[user], found.item_keys[item], time, found.titles[item])
        for user, item, time in zip(*columns, strict=True)
    ]


def sequences(found: Interactions) -> dict[str, list[str]]:
    """Each user's items by (time, file order)."""
    ordered = found.table.sort_values(["user_id", "timestamp"], kind="stable")
    assert found.user_keys is not None and found.item_keys is not None
    keys = pd.Series(found.item_keys)
    return {
        found.user_keys[user]: keys.loc[own].tolist()
        for user, own in ordered.groupby("user_id")["item_id"]
    }


# ------------------------------------------------------------------ files that are right

SOUND = [("b", "x", 20_000, "X"), ("a", "y", 10_000, "Y"), ("b", "y", 10_000, "Y")]
TEXT = HEADER + "b,x,20,X\na,y,10,Y\nb,y,10,Y\n"
OBJECTS = (
    '{"user": "b", "item": "x", "time": 20, "title": "X", "more": {"a": [1]}}\n'
    '\n{"user": "a", "item": "y", "time": 10, "title": "Y"}\n'
    '{"title": null, "time": 10.0, "item": "y", "user": "b"}'
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", TEXT),
        ("bom.csv", b"\xef\xbb\xbf" + TEXT.encode()),
        ("crlf.csv", TEXT.replace("\n", "\r\n")),
        ("mac.csv", TEXT.replace("\n", "\r")),
        ("no-end.csv", TEXT.rstrip("\n")),
        ("blank-lines.csv", "\n" + TEXT.replace("\n", "\n\n")),
        ("semicolons.csv", TEXT.replace(",", ";")),
        ("quoted.csv", TEXT.replace("X", '"X"')),
        ("a.tsv", TEXT.replace(",", "\t")),
        ("A.CSV.gz", gzip.compress(TEXT.encode(), mtime=0)),
        ("a.jsonl", OBJECTS),
        ("a.json", b"\xef\xbb\xbf" + OBJECTS.encode()),
        ("a.jsonl.gz", gzip.compress(OBJECTS.encode(), mtime=0)),
    ],
)
def test_a_file_of_text_gives_its_rows_in_order(written, name: str, content: str | bytes) -> None:
    assert rows(read(written(name, content))) == SOUND


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_encoding_is_named(written, encoding: str, kind: str) -> None:
    text = HEADER + "a,x,1,Pl\u00e4tze\n"
    if kind == "jsonl":
        text = '{"user": "a", "item": "x", "time": 1, "title": "Pl\u00e4tze"}\n'
    path = written(f"a.{kind}", text.encode(encoding))
    assert rows(read(path, encoding=encoding)) == [("a", "x", 1000, "Pl\u00e4tze")]


def test_quotes_protect_separators_line_breaks_and_quotes(written) -> None:
    path = written("a.csv", HEADER + '"a",x,1,"One, ""two""\n three"\nb,y,2,12" vinyl\n')
    assert rows(read(path)) == [
        ("a", "x", 1000, 'One, "two" three'),
        ("b", "y", 2000, '12" vinyl'),
    ]


def test_the_order_in_time_is_left_to_the_stage(written) -> None:
    found = read(written("a.csv", TEXT))
    assert list(found.table) == ["user_id", "item_id", "timestamp"]
    assert [str(kind) for kind in found.table.dtypes] == ["int64"] * 3
    assert sequences(found) == {"b": ["y", "x"], "a": ["y"]}


def test_rows_in_file_order_need_no_times(written) -> None:
    path = written("a.csv", "user,item\nb,x\na,x\nb,y\nb,x\n")
    found = read(path, time="file order")
    assert list(found.table) == ["user_id", "item_id", "timestamp"]
    assert found.table["timestamp"].isna().all()
    assert found.table["user_id"].tolist() == [0, 1, 0, 0]


# ------------------------------------------------------------------ columns


@pytest.mark.parametrize(
    "header",
    [
        "userId,movieId,timestamp,title",
        "reviewerID,asin,unixReviewTime,product_title",
        "USER ID,Item-ID,TS,Name",
        "uid , product_id , Date , title",
    ],
)
def test_columns_are_guessed_by_well_known_names_and_printed(written, capsys, header: str) -> None:
    path = written("a.csv", f"{header}\na,x,20,X\n")
    found = read(path)
    assert rows(found) == [("a", "x", 20_000, "X")]
    user, item, time, title = (name.strip() for name in header.split(","))
    line = (
        f"columns: user = {user!r} (guessed), item = {item!r} (guessed), "
        f"time = {time!r} (guessed), title = {title!r} (guessed)"
    )
    assert line in found.notes[0]
    assert f"[custom] {line}\n" in capsys.readouterr().out


def test_named_columns_need_no_guess(written) -> None:
    path = written("a.csv", "who,user,what,when,rating\na,z,x,20,5\n")
    found = read(path, user="who", item="what", time="when", title="what")
    assert rows(found) == [("a", "x", 20_000, "x")]
    assert "columns: user = 'who', item = 'what', time = 'when', title = 'what'" in found.notes[0]


# ------------------------------------------------------------------ ratings, repeats, titles


def test_min_rating_comes_before_all_else(written) -> None:
    text = "user,item,time,stars\na,x,1,2\nb,y,2,4.5\na,y,3,3\n"
    found = read(written("a.csv", text), min_rating=3)
    assert [row[:3] for row in rows(found)] == [("b", "y", 2000), ("a", "y", 3000)]
    assert found.item_keys == ["y"]
    assert found.table["user_id"].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"prepare\.min_rating=6 .*the highest rating is 4\.5"):
        read(written("a.csv", text), min_rating=6)


@pytest.mark.parametrize(
    ("repeats", "times"), [("keep", [9, 1, 5, 7]), ("first", [1, 7]), ("last", [9, 7])]
)
def test_a_repeat_is_first_or_last_in_time(written, repeats: str, times: list[int]) -> None:
    path = written("a.csv", "user,item,time\na,x,9\na,x,1\na,x,5\na,y,7\n")
    found = read(path, repeats=repeats)
    assert found.table["timestamp"].tolist() == [1000 * time for time in times]


def test_the_first_title_of_an_item_counts_and_others_are_counted(written) -> None:
    text = HEADER + "a,x,1,\nb,x,2,Old  name\na,y,3,Y\nb,y,4,Y\na,x,5,New\na,z,6, \n"
    found = read(written("a.csv", text))
    assert found.titles == ["Old name", "Y", "z"]
    assert "titles: 1 items have several, the first of which is shown" in found.notes[0]
    assert "titles: 1 of 3 items have none: the id is shown" in found.notes[0]


def test_headlines_of_reviews_are_not_taken_for_titles(written) -> None:
    path = written("a.csv", HEADER + "a,x,1,Great\nb,x,2,Awful\na,y,3,Y\n")
    with pytest.raises(ValueError, match=r"line 3: the column 'title', guessed .* 'Awful' .*item"):
        read(path)
    assert read(path, title="title").titles == ["Great", "Y"]
    assert read(path, title="item").titles == ["x", "y"]


def test_titles_may_stand_in_a_file_beside(written) -> None:
    source = written("shop/reviews.csv", "user,item,time\na,x,1\nb,y,2\nb,z,3\n").parent
    written("shop/items.jsonl", '{"item": "x", "title": "X"}\n{"item": "y"}\n{"item": "q"}\n')
    assert read(source).titles == ["X", "y", "z"]
    assert sorted(Custom().raw_files(source)) == ["items.jsonl", "reviews.csv"]


@pytest.mark.parametrize("content", ["item,title\n y,Y\n", "item,title\nx,\n"])
def test_a_file_of_titles_that_titles_nothing_is_refused(written, content: str) -> None:
    written("data/visits.csv", "user,item,time\na,x,1\n")
    folder = written("data/items.csv", content).parent
    with pytest.raises(ValueError, match="items.csv has a title of none of the items: .*'x'"):
        read(folder)


# ------------------------------------------------------------------ ids


@pytest.mark.parametrize(
    ("written_ids", "known"),
    [
        (["12", "12.0", "7"], ["12", "7"]),  # pandas beside gaps
        (["12.", "12", "12.00"], ["12"]),
        (["007", "7", "07"], ["007", "7", "07"]),
        (["v1.0", "v1", "1.5"], ["v1.0", "v1", "1.5"]),
        (["1" * 30, "1" * 29, "x"], ["1" * 30, "1" * 29, "x"]),
        (["true", "A", "a"], ["true", "A", "a"]),
    ],
)
def test_ids_are_kept_letter_by_letter(written, written_ids: list[str], known: list[str]) -> None:
    lines = "".join(f"{one},x,1\n" for one in written_ids)
    assert read(written("a.csv", f"user,item,time\n{lines}")).user_keys == known
    lines = "".join(f'{{"user": "{one}", "item": 1, "time": 1}}\n' for one in written_ids)
    assert read(written("a.jsonl", lines)).user_keys == known


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ([12, 2**62, 7], ["12", str(2**62), "7"]),
        ([12.0, 7.0, 12.0], ["12", "7"]),
        (np.array([12, 7, 12], "f4"), ["12", "7"]),
        (["12", "x", "007"], ["12", "x", "007"]),
        (pd.Categorical([3, 1, 3]), ["3", "1"]),
        (pd.array([3, 1, 3], dtype="UInt8"), ["3", "1"]),
    ],
)
def test_ids_of_parquet_are_text_or_whole_numbers(tmp_path: Path, values, known) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"user": values, "item": 1, "time": [1, 2, 3]}).to_parquet(path)
    assert read(path).user_keys == known


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.5, 2, 3], r"row 1: column 'user' holds 1\.5: a fraction is no id"),
        ([1, None, 3.0], "row 2: column 'user' is empty"),
        ([1, float("nan"), float("inf")], "row 2: column 'user'"),
        ([1, 2.0**60, 3], r"row 2: column 'user' holds 1\.15.*: a rounded number"),
        (np.array([1, 2**24, 2], "f4"), r"row 2: column 'user' holds 1677.*: a rounded number"),
        ([True, False, True], "row 1: column 'user' holds values of type bool, such as True"),
        ([[1], [2], [3]], r"row 1: column 'user' holds values of type list.* such as \[1\]"),
        ([None, None, None], "row 1: column 'user' is empty"),
        (pd.to_datetime(["2020"] * 3), "row 1: column 'user' holds values of type timestamp"),
    ],
)
def test_ids_of_parquet_that_are_none_are_refused(tmp_path: Path, values, reason: str) -> None:
    path = tmp_path / "a.parquet"
    table = {"user": pa.array(values), "item": pa.array([1] * 3), "time": pa.array([1, 2, 3])}
    pq.write_table(pa.table(table), path)
    with pytest.raises(ValueError, match=reason):
        read(path)


# ------------------------------------------------------------------ times


@pytest.mark.parametrize(
    ("written_times", "expected"),
    [
        (["1600000000", "0"], [1_600_000_000_000, 0]),
        (["1600000000123", "5"], [1_600_000_000_123, 0 + 5]),
        (["1600000000123456"], [1_600_000_000_123]),
        (["1600000000123456789"], [1_600_000_000_123]),
        (["1600000000.0", "1600000001"], [1_600_000_000_000, 1_600_000_001_000]),
        (["1600000000.25", "7"], [1_600_000_000_250, 7000]),
        (["1.6e9"], [1_600_000_000_000]),
        ([" 3 "], [3000]),
        (["1970-01-02"], [86_400_000]),
        (["1970-01-01T00:00:01Z", "1970-01-01T01:00:00.5+01:00"], [1000, 500]),
        (["1969-12-31 23:59:59"], [-1000]),
        (["1500-01-01", "2400-01-01"], [-14_831_769_600_000, 13_569_465_600_000]),
    ],
)
def test_times_are_told_by_their_form(written, written_times, expected) -> None:
    lines = "".join(f"a,x,{time}\n" for time in written_times)
    found = read(written("a.csv", f"user,item,time\n{lines}"))
    assert found.table["timestamp"].tolist() == expected


@pytest.mark.parametrize(
    "values",
    [
        pd.to_datetime(["2020-01-01", "2020-01-02"]),
        pd.to_datetime(["2020-01-01T02:00+02:00", "2020-01-02T02:00+02:00"]),
        pd.to_datetime(["2020-01-01", "2020-01-02"]).date,
        [1_577_836_800, 1_577_923_200],
        [1_577_836_800_000.0, 1_577_923_200_000.0],
        ["2020-01-01", "2020-01-02"],
        pd.to_datetime(["2020-01-01", "2020-01-02"]).as_unit("ns"),
    ],
)
def test_times_of_parquet_may_be_of_any_type(tmp_path: Path, values) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"user": "a", "item": "x", "time": values}).to_parquet(path)
    assert read(path).table["timestamp"].tolist() == [1_577_836_800_000, 1_577_923_200_000]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("-1", "holds '-1': a time before 1970"),
        ("nan", "holds 'nan': write whole numbers since 1970, or ISO dates"),
        ("inf", "holds 'inf'"),
        ("", "column 'time' is empty"),
        ("2020-01-01", "holds '2020-01-01'"),
        ("9" * 30, "holds '9999"),
        ("1600000000000", "line 2: column 'time' holds '1600000000': not of the unit of .*line 3"),
    ],
)
def test_numbers_that_are_no_times_are_refused(written, second: str, reason: str) -> None:
    path = written("a.csv", f"user,item,time\na,x,1600000000\na,y,{second}\n")
    with pytest.raises(ValueError, match=reason):
        read(path)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("2020-02-30", "line 3: column 'time' holds '2020-02-30': no such date"),
        ("2020-01-01T10:00Z", "line 3: .*times with and without a zone"),
        ("01/02/2020", "line 3: .*'01/02/2020': write whole numbers since 1970, or ISO dates"),
        ("1600000000", "line 3: .*'1600000000'"),
        ("yesterday", "line 3: .*'yesterday'"),
    ],
)
def test_text_that_is_no_date_is_refused(written, second: str, reason: str) -> None:
    path = written("a.csv", f"user,item,time\na,x,2020-01-01T09:00\na,y,{second}\n")
    with pytest.raises(ValueError, match=reason):
        read(path)


def test_times_that_a_short_float_has_rounded_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    times = pd.array([1.0, 1.6e9], dtype="float32")
    pd.DataFrame({"user": "a", "item": "x", "time": times}).to_parquet(path)
    with pytest.raises(ValueError, match="row 2: column 'time' holds 1.*float cannot hold times"):
        read(path)


# ------------------------------------------------------------------ files that are refused

ONE = '{"user": 1, "item": 2, "time": 3}\n'
LONG = HEADER + "a,x,1,T\n" * 99
LATIN = (HEADER + "a,x,1,T\nb,y,2,\u00e9\n").encode("latin-1")
REFUSED = [
    ("a.csv", "", "is empty: it needs a header"),
    ("a.csv", HEADER, "has a header and no rows"),
    ("a.csv", "1,2,10,T\n", "line 1: no column is known as user .*looks like data"),
    ("a.csv", "user,item\na,x\n", "line 1: no column is known as time .*'file order'"),
    ("a.csv", "user,what,time\na,x,1\n", r"line 1: .* as item .*--prepare\.custom\.item COLUMN"),
    ("a.csv", "user,item,time,time\na,x,1,1\n", "the column 'time' stands twice"),
    ("a.csv", "user,item,asin,time\na,x,y,1\n", "the columns 'item' and 'asin' could both be"),
    ("a.csv", "user,User,item,time\na,x,y,1\n", "the columns 'user' and 'User' could both be"),
    ("a.csv", HEADER + 'a,x,1,"T\nU"\nb,y,2\n', "line 4: 3 values, where the header has 4"),
    ("a.csv", HEADER + "a,x,1,T,U\n", "line 2: 5 values, where the header has 4"),
    ("a.csv", HEADER + 'a,x,1,T\nb,y,2,"U\nc,z,3,V\n', "line 3: a quote opens that is never"),
    ("a.csv", HEADER + 'a,x,1,"U\nc,z,3,"V"\n', "line 2: quotes do not match"),
    ("a.csv", HEADER + 'a,x,1,"\\"U\\""\n', "line 2: quotes do not match"),
    ("a.csv", HEADER + 'a,x,1,"T\nU"\n,y,2,U\n', "line 4: column 'user' is empty"),
    ("a.csv", HEADER + "a,x,1,T\nb,nan,2,U\n", "line 3: column 'item' holds 'nan': a missing id"),
    ("a.csv", HEADER + "1.5,x,1,T\n2,y,2,U\n", r"line 2: column 'user' holds '1\.5': a fraction"),
    ("a.csv", HEADER + "1,x,1,T\n1e5,y,2,U\n", "line 3: column 'user' holds '1e5': a rounded"),
    ("a.csv", HEADER + "12.0,x,1,T\n12,y,2,U\nb,y,3,U\n", r"line 3: .*'12': the same as '12\.0'"),
    ("a.csv", HEADER + "bob,x,1,T\n bob,y,2,U\n", r"line 3: .*' bob': the same as 'bob' \("),
    ("a.csv", HEADER + "\u00e9,x,1,T\ne\u0301,y,2,U\n", "line 3: .*the same as '\u00e9' \\("),
    ("a.csv", LATIN, "line 3: this is not utf-8 .*byte 0xe9.*cp1252"),
    ("a.csv", (HEADER + "a,x,1,T\n").encode("utf-16"), "line 1: this is not utf-8 .*utf-16"),
    ("a.csv.gz", gzip.compress(LONG.encode(), mtime=0)[:-9], "is cut off or no gzip"),
    ("a.csv.gz", TEXT, "is cut off or no gzip"),
    ("a.csv", gzip.compress(TEXT.encode(), mtime=0), r"has the content of a \.gz file: rename"),
    ("a.csv", b"PAR1", r"has the content of a \.parquet file"),
    ("a.parquet", b"PAR1" * 9, "is no Parquet file, or cut off"),
    ("a.parquet", b"", "is no Parquet file, or cut off"),
    ("a.pkl", b"\x80\x04K\x01.", r"is a pickle, .*never loaded.*read_pickle\('a\.pkl'\)"),
    ("a.csv", b"\x80\x04K\x01.", "is a pickle"),
    ("a.xlsx", b"PK", r"says nothing of its content: name it \.csv"),
    ("a.jsonl", "", "holds no object"),
    ("a.jsonl", "\n \n", "holds no object"),
    ("a.json", '[{"user": 1}]', "line 1: .* is no object with fields; convert it: python"),
    ("a.json", '[\n{"user": 1}]', "line 1: .*this is an array.* convert it: python"),
    ("a.json", "{'user': 1}\n", "line 1: .*this is Python's notation; convert it: python"),
    ("a.jsonl", ONE + '{"user": 1, "it', "line 2: .* is no JSON"),
    ("a.jsonl", ONE + "3\n", "line 2: 3 is no object"),
    ("a.jsonl", ONE + "\n" + '{"item": 2, "time": 3}\n', "line 3: column 'user' is empty"),
    ("a.jsonl", ONE + '{"user": null, "item": 2, "time": 3}\n', "line 2: column 'user' is empty"),
    ("a.jsonl", ONE + '{"user": true, "item": 2, "time": 3}\n', "line 2: field 'user' holds True"),
    ("a.jsonl", ONE + '{"user": 1, "item": [2], "time": 3}\n', r"line 2: field 'item' holds \[2\]"),
    ("a.jsonl", ONE + '{"user": 1, "item": {}, "time": 3}\n', "line 2: field 'item' holds {}"),
    ("a.jsonl", ONE + '{"user": NaN, "item": 2, "time": 3}\n', "line 2: column 'user' holds 'nan'"),
    ("a.jsonl", ONE + '{"user": 1, "item": 2, "time": Infinity}\n', "line 2: .*'time' holds 'inf'"),
    ("a.jsonl", ONE + '{"user": 1, "user": 2}\n', "line 2: the field 'user' stands twice"),
    ("a.jsonl", ONE + ONE.strip() * 2, "line 2: .* is no JSON"),
    ("a.jsonl", ONE + '{"user": "\\ud800", "item": 2, "time": 3}\n', "line 2: .*half a character"),
    ("a.jsonl", ONE + '{"a": ' * 9999, "line 2: .* is no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "reason"), REFUSED)
def test_a_bad_file_is_refused_with_its_line_and_the_remedy(
    written, name: str, content: str | bytes, reason: str
) -> None:
    path = written(name, content)
    with pytest.raises(ValueError, match=reason) as found:
        read(path)
    assert str(found.value).startswith(str(path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"user": "who"}, r"prepare\.custom\.user='who': .* has no such column; it has 'user', "),
        ({"user": "item"}, r"prepare\.custom\.user='item': this column is the item too"),
        ({"encoding": "klingon"}, r"prepare\.custom\.encoding='klingon' is no encoding"),
        ({"encoding": "base64"}, r"prepare\.custom\.encoding='base64' is no encoding"),
        ({"min_rating": 3.0}, r"no column is known as rating .*--prepare\.custom\.rating"),
    ],
)
def test_a_field_that_does_not_fit_is_named(written, fields, reason: str) -> None:
    path = written("a.csv", HEADER + "a,x,1,T\n")
    with pytest.raises(ValueError, match=reason):
        read(path, **fields)


def test_a_rating_that_is_none_is_refused(written) -> None:
    path = written("a.csv", "user,item,time,rating\na,x,1,5\nb,y,2,\n")
    with pytest.raises(ValueError, match="line 3: column 'rating' is empty: write a number"):
        read(path, min_rating=3)


def test_a_cut_in_time_needs_times() -> None:
    own = config(None, time="file order")
    own.protocol = "temporal"
    with pytest.raises(ValueError, match=r"prepare\.custom\.time='file order': .*leave-one-out"):
        check_config(own)


def test_a_missing_source_is_refused_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing: .*--prepare\.source interactions\.csv"):
        Custom().raw_files(None)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder"):
        Custom().raw_files(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="holds no table"):
        Custom().raw_files(tmp_path)
    (tmp_path / "train.df").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="is a pickle"):
        Custom().raw_files(tmp_path)


# ------------------------------------------------------------------ the stage


def prepared(source: Path, folder: Path, protocol: str, **fields: Any) -> pd.DataFrame:
    """The stage's interactions with the source's ids and the titles, in the stage's order."""
    own = config(source, **fields)
    own.protocol, own.core, own.num_candidates = protocol, 3, 2
    own.negatives = "catalogue"
    prepare(own, folder, Checksums(folder / "checksums.json"))
    table = pd.read_parquet(folder / "interactions.parquet")
    users, items = (pd.read_parquet(folder / f"{name}.parquet") for name in ("users", "items"))
    table = table.merge(users, on="user_id").rename(columns={"key": "user"})
    return table.merge(items, on="item_id").sort_values(["user_id", "position"])


@pytest.mark.parametrize(
    ("protocol", "time"),
    [
        ("chronological", None),
        ("leave-one-out", None),
        ("temporal", None),
        ("chronological", "file order"),
        ("leave-one-out", "file order"),
    ],
)
def test_every_protocol_orders_filters_and_splits_the_file(
    written, tmp_path: Path, protocol: str, time: str | None
) -> None:
    items = "fadcbe"
    lines = [
        f"{user:03},{item},{1000 * user + 10 - turn},Item {item.upper()}"
        for user in range(12)
        for turn, item in enumerate(items)
    ]
    lines.insert(3, "rare,a,5,Item A")
    source = written("a.csv", HEADER + "\n".join(lines))
    found = prepared(source, tmp_path / "prepare", protocol, time=time)
    order = items if time else items[::-1]
    sequences = found.groupby("user")["key"].apply("".join)
    assert sequences.to_dict() == {f"{user:03}": order for user in range(12)}
    assert (found["title"] == "Item " + found["key"].str.upper()).all()
    assert found["timestamp"].isna().all() == (time is not None)
    if protocol == "leave-one-out":
        assert found.loc[found["split"] == "test", "key"].tolist() == [order[-1]] * 12
    manifest = read_json(tmp_path / "prepare" / "manifest.json")
    assert manifest["notes"][0].startswith("**Source**: a.csv: 73 rows, 13 users, 6 items; columns")


def test_a_refused_file_leaves_no_table(written, tmp_path: Path) -> None:
    source = written("a.csv", HEADER + "a,x,1,T\n" * 50 + "a,x,never,T\n")
    with pytest.raises(ValueError, match="line 52: column 'time' holds 'never'"):
        prepared(source, tmp_path / "prepare", "leave-one-out")
    assert not list((tmp_path / "prepare").rglob("*.parquet"))
