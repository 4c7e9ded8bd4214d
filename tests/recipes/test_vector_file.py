from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from recipes.arms import comparison
from recipes.artifacts import read_tensors
from recipes.checksums import Checksums
from recipes.data.prepare import prepare
from recipes.data.splits import SPLITS
from recipes.data.tables import PreparedData
from recipes.experiment import Experiment, PrepareConfig, RecommenderConfig, SyntheticConfig
from recipes.pipeline import Pipeline
from recipes.preflight import preflight
from recipes.recommenders.representations import Representations
from recipes.recommenders.vector_file import VectorFile
from recipes.run import Network, Run

PREPARE = PrepareConfig(protocol="chronological", synthetic=SyntheticConfig(num_users=12))
D = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Prepared data of twelve users."""
    made = Run(Experiment(out=str(tmp_path_factory.mktemp("run")), prepare=PREPARE), {})
    made.prepare()
    return made


@pytest.fixture(scope="module")
def windows(run: Run) -> pd.DataFrame:
    """user_id, position and split of every window, in the order of the tables."""
    table = pd.read_parquet(run.prepare_folder / "interactions.parquet")
    return table[["user_id", "position", "split"]]


def user_vector(user: Any, position: Any = 0) -> np.ndarray:
    """The vectors of users, or of users and positions: no two are the same."""
    user, position = np.asarray(user), np.asarray(position)
    return np.stack([user, position + 0 * user, user * 100.0 + position], axis=-1).astype(
        np.float32
    )


def item_vectors(count: int) -> np.ndarray:
    return np.arange(count * D, dtype=np.float32).reshape(count, D)


def source(users: Path, items: Path) -> VectorFile:
    return VectorFile(RecommenderConfig(user_vectors=str(users), item_vectors=str(items)))


def users_table(windows: pd.DataFrame, positions: bool) -> pd.DataFrame:
    keys = windows[["user_id", "position"]] if positions else windows[["user_id"]].drop_duplicates()
    vectors = user_vector(keys["user_id"], keys["position"] if positions else 0)
    return keys.assign(vector=list(vectors)).sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def items(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("items") / "items.safetensors"
    save_file({"items": torch.from_numpy(item_vectors(run.data.num_items))}, path)
    return path


def check_vectors(run: Run, windows: pd.DataFrame, made: VectorFile, positions: bool) -> None:
    assert made.width == D
    users, items = made.vectors(run.data, run.prepare_folder)
    np.testing.assert_array_equal(items, item_vectors(run.data.num_items))
    for split in SPLITS:
        own = windows[windows["split"] == split]
        expected = user_vector(own["user_id"], own["position"] if positions else 0)
        np.testing.assert_array_equal(users[split], expected)
        assert users[split].dtype == items.dtype == torch.float32


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("form", ["lists", "fixed lists", "columns", "tensors"])
def test_vectors_are_found_by_their_keys_whatever_the_order_of_the_file(
    run: Run, windows: pd.DataFrame, items: Path, tmp_path: Path, form: str, positions: bool
) -> None:
    table = users_table(windows, positions)
    path = tmp_path / ("users.safetensors" if form == "tensors" else "users.parquet")
    vectors = np.stack(table["vector"].to_list())
    keys = table.drop(columns="vector")
    if form == "tensors":
        tensors = {"users": torch.from_numpy(vectors).double()}
        tensors["user_ids"] = torch.tensor(keys["user_id"].to_numpy())
        if positions:
            tensors["positions"] = torch.tensor(keys["position"].to_numpy())
        save_file(tensors, path)
    elif form == "columns":
        columns = {f"v{place}": vectors[:, place].astype(np.float64) for place in (2, 0, 1)}
        keys.assign(**columns).to_parquet(path)
    elif form == "lists":
        table.to_parquet(path)
    else:
        kind = pa.list_(pa.float32(), D)
        lists = pa.FixedSizeListArray.from_arrays(vectors.ravel(), type=kind)
        pq.write_table(pa.Table.from_pandas(keys).append_column("vector", lists), path)
    check_vectors(run, windows, source(path, items), positions)


def test_one_file_may_hold_users_and_items_and_half_precision(
    run: Run, windows: pd.DataFrame, tmp_path: Path
) -> None:
    ids = np.sort(windows["user_id"].unique())
    tensors = {
        "users": torch.from_numpy(user_vector(ids)).bfloat16(),
        "user_ids": torch.tensor(ids),
        "items": torch.from_numpy(item_vectors(run.data.num_items)).bfloat16(),
    }
    save_file(tensors, tmp_path / "both.safetensors")
    made = source(tmp_path / "both.safetensors", tmp_path / "both.safetensors")
    users, items = made.vectors(run.data, run.prepare_folder)
    rows = np.searchsorted(ids, run.data.split("test").user_ids)
    assert torch.equal(users["test"], tensors["users"].float()[torch.tensor(rows)])
    assert torch.equal(items, tensors["items"].float())


def test_the_ids_of_the_source_are_looked_up_in_the_prepared_tables(
    run: Run, windows: pd.DataFrame, tmp_path: Path
) -> None:
    ids, count = np.sort(windows["user_id"].unique()), run.data.num_items
    prepared = tmp_path / "prepare"
    prepared.mkdir()
    pd.DataFrame({"user_id": ids, "key": [f"u{one * 7}" for one in ids]}).to_parquet(
        prepared / "users.parquet"
    )
    pd.DataFrame(
        {"item_id": range(count), "title": "", "key": [f"{9 * i}" for i in range(count)]}
    ).to_parquet(prepared / "items.parquet")
    users = pd.DataFrame({"user": [f"u{one * 7}" for one in ids], "vector": list(user_vector(ids))})
    users[::-1].to_parquet(tmp_path / "users.parquet")
    # Ids that are numbers in the file are the texts of the tables.
    items = pd.DataFrame(
        {"item": [9 * i for i in range(count)], "vector": list(item_vectors(count))}
    )
    items[::-1].to_parquet(tmp_path / "items.parquet")
    made = source(tmp_path / "users.parquet", tmp_path / "items.parquet")
    users_found, items_found = made.vectors(run.data, prepared)
    np.testing.assert_array_equal(items_found, item_vectors(count))
    np.testing.assert_array_equal(users_found["val"], user_vector(run.data.split("val").user_ids))
    users.iloc[1:].to_parquet(tmp_path / "users.parquet")
    message = refusal(run, made, prepared)
    assert (
        f"lacks the vectors of 1 of the {len(ids)} users of these data, first that of " in message
    )
    assert message.endswith(f"user {ids[0]} (u{ids[0] * 7}): add them")


def test_vectors_of_unknown_users_and_positions_are_counted_and_left_out(
    run: Run, windows: pd.DataFrame, items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "users.parquet"
    for positions, count in ((False, 3), (True, 4)):
        table = users_table(windows, positions)
        more = table.iloc[[0, 0, 0]].assign(user_id=[-5, 10**12, 10**12])
        if positions:
            more = pd.concat([more, table.iloc[[0]].assign(position=-1)])
            more.iloc[0, 1] = 2**62
        pd.concat([more, table]).to_parquet(path)
        check_vectors(run, windows, source(path, items), positions)
        said = capsys.readouterr().out
        what = "window" if positions else "user"
        assert f"users.parquet: {count} of {len(table) + count} vectors are of no {what} of" in said


# ------------------------------------------------------------------ what is refused


def refusal(run: Run, made: VectorFile, prepared: Path | None = None) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        made.check()
        made.vectors(run.data, prepared or run.prepare_folder)
    return str(refused.value)


def nan(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    table.at[table.index[2], "vector"] = np.array([0, np.nan, 0], np.float32)
    return table


Change = Callable[[pd.DataFrame], pd.DataFrame]
CHANGES: list[tuple[Change, str]] = [
    (
        lambda t: t.drop(columns="user_id"),
        "needs one of the columns `user_id`, .* and `user`, .*; it has neither",
    ),
    (lambda t: t.assign(user="x"), "it has user_id and user"),
    (
        lambda t: t.assign(user_id=t["user_id"].astype(float)),
        "column `user_id` is of type double: write whole",
    ),
    (
        lambda t: t.assign(user_id=t["user_id"].where(t["user_id"] > 3, pd.NA).astype("Int64")),
        "column `user_id` is empty in 4 rows",
    ),
    (
        lambda t: t.rename(columns={"user_id": "user"}),
        "this dataset keeps no other ids than the numbers",
    ),
    (
        lambda t: t.drop(columns="vector"),
        "needs a column `vector` of lists, or columns v0, v1, .. without a gap",
    ),
    (
        lambda t: t.drop(columns="vector").assign(v0=1.0, v2=1.0),
        "without a gap; it has user_id, v0, v2",
    ),
    (
        lambda t: t.drop(columns="vector").assign(v0="1"),
        "column `v0` holds values of type .*string: write numbers",
    ),
    (lambda t: t.assign(vector=1.0), "column `vector` is of type double: write lists"),
    (
        lambda t: t.assign(vector=[[1.0] * (2 + (row == 3)) for row in range(len(t))]),
        "vectors of widths 2, 3",
    ),
    (lambda t: t.assign(vector=[[1.0]] * len(t)), "vectors of width 1 and .*item_vectors of 3"),
    (lambda t: t.assign(vector=[None, *t["vector"][1:]]), "column `vector` is empty in 1 rows"),
    (nan, "holds NaN or infinity in 1 of 12 vectors, first in that of user"),
    (lambda t: t.assign(vector=[[1e39] * D] * len(t)), "holds NaN or infinity in 12 of 12 vectors"),
    (
        lambda t: t[t["user_id"] > 1],
        "lacks the vectors of 2 of the 12 users of these data, first that of user [01]: add",
    ),
    (lambda t: pd.concat([t, t[t["user_id"] == 5]]), "has two vectors of user 5: keep one"),
    (lambda t: t.iloc[:0], "holds no vectors"),
    (lambda t: t.assign(position=0.5), "column `position` is of type double"),
]


@pytest.mark.parametrize(
    ("change", "message"), CHANGES, ids=[message[:50] for _, message in CHANGES]
)
def test_a_table_that_does_not_fit_is_refused_and_the_field_is_named(
    run: Run, windows: pd.DataFrame, items: Path, tmp_path: Path, change: Change, message: str
) -> None:
    path = tmp_path / "users.parquet"
    change(users_table(windows, positions=False)).to_parquet(path)
    with pytest.raises(ValueError, match=message) as refused:
        source(path, items).vectors(run.data, run.prepare_folder)
    assert str(refused.value).startswith("recommender.user_vectors")


def test_a_missing_position_and_a_repeated_one_are_named(
    run: Run, windows: pd.DataFrame, items: Path, tmp_path: Path
) -> None:
    table, path = users_table(windows, positions=True), tmp_path / "users.parquet"
    one = windows[windows["split"] == "test"].iloc[4]
    chosen = (table["user_id"] == one["user_id"]) & (table["position"] == one["position"])
    told = f"user {one['user_id']} at position {one['position']}"
    table[~chosen].to_parquet(path)
    lacks = f"lacks the vectors of 1 of the {len(windows)} windows of these data"
    assert f"{lacks}, first that of {told}: add them" in refusal(run, source(path, items))
    pd.concat([table, table[chosen]]).to_parquet(path)
    assert f"has two vectors of {told}: keep one" in refusal(run, source(path, items))


def test_positions_of_windows_that_came_ready_made_are_unknown(
    run: Run, windows: pd.DataFrame, items: Path, tmp_path: Path
) -> None:
    users_table(windows, positions=True).to_parquet(tmp_path / "users.parquet")
    with pytest.raises(ValueError, match="the windows of this dataset came ready-made"):
        alone = replace(run.data, folder=None)
        source(tmp_path / "users.parquet", items).vectors(alone, tmp_path)


TENSORS = [
    ({"user_ids": torch.arange(2)}, "has no tensor `users`, but user_ids"),
    ({"users": torch.zeros(2, D)}, "has no tensor `user_ids`, but users"),
    ({"users": torch.zeros(2), "user_ids": torch.arange(2)}, r"`users` is torch.float32 \[2\]"),
    ({"users": torch.zeros(2, D).long(), "user_ids": torch.arange(2)}, "`users` is torch.int64"),
    ({"users": torch.zeros(2, D), "user_ids": torch.zeros(2)}, "`user_ids` is torch.float32"),
    ({"users": torch.zeros(2, D), "user_ids": torch.arange(3)}, "`user_ids` has 3 entries for 2"),
]


@pytest.mark.parametrize(("tensors", "message"), TENSORS, ids=lambda value: str(value)[:20])
def test_tensors_that_do_not_fit_are_refused(
    run: Run, items: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "users.safetensors")
    with pytest.raises(ValueError, match=f"^recommender.user_vectors.*{message}"):
        source(tmp_path / "users.safetensors", items).vectors(run.data, run.prepare_folder)


def test_too_few_items_are_refused(run: Run, windows: pd.DataFrame, tmp_path: Path) -> None:
    count = run.data.num_items
    users_table(windows, positions=False).to_parquet(tmp_path / "users.parquet")
    save_file({"items": torch.zeros(count - 2, D)}, tmp_path / "items.safetensors")
    message = refusal(run, source(tmp_path / "users.parquet", tmp_path / "items.safetensors"))
    assert message.startswith("recommender.item_vectors=")
    assert (
        f"lacks the vectors of 2 of the {count} items of these data, first that of item {count - 2}"
        in message
    )


def test_files_are_refused_before_anything_is_read(tmp_path: Path, items: Path) -> None:
    def message(**files: str | None) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            comparison(Experiment(recommender=RecommenderConfig(name="file", **files)))
        return str(refused.value)

    assert message(item_vectors=str(items)).startswith("recommender.user_vectors names no file")
    assert message(user_vectors=str(items)).startswith("recommender.item_vectors names no file")
    for name in ("users.pt", "users.npy", "users.pkl"):
        assert "such as pickles, are not read: write Parquet" in message(user_vectors=name)
    assert "there is no such file" in message(user_vectors=str(tmp_path / "users.parquet"))


def test_a_file_that_is_damaged_is_refused_before_the_first_stage_that_trains(
    run: Run, tmp_path: Path, items: Path
) -> None:
    for name in ("users.parquet", "users.safetensors"):
        (tmp_path / name).write_bytes(b"PAR1 nonsense" * 10)
        config = RecommenderConfig(user_vectors=str(tmp_path / name), item_vectors=str(items))
        again = Run(run.experiment, {"file": Network(VectorFile, config)})
        with pytest.raises(ValueError, match=f"{name} is damaged, or no"):
            preflight(again, [])


# ------------------------------------------------------------------ as a recommender


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, unique=True), st.randoms()
)
def test_keys_match_as_a_dictionary_does(keys: list[tuple[int, int]], random: Any) -> None:
    from recipes.recommenders.vector_file import _Search
    from recipes.recommenders.vector_table import VectorTable

    extra = [(9, 0), (0, 9), (4, 3), (2, 2)]
    rows = list(dict.fromkeys([*keys, *extra]))
    random.shuffle(rows)
    ids, positions = np.array(rows).T
    table = VectorTable(pa.array(ids), positions, np.zeros((len(rows), 1), np.float32))
    search = _Search("field", "file", table, "user", Path("nowhere"))
    wanted, at = np.array(keys).T
    assert [rows[row] for row in search.find(wanted, at)] == keys


def test_another_content_of_a_file_makes_the_stage_another_and_another_place_does_not(
    run: Run, windows: pd.DataFrame, items: Path, tmp_path: Path
) -> None:
    path = tmp_path / "users.parquet"
    users_table(windows, positions=False).to_parquet(path)

    def fingerprint(users: Path) -> str:
        config = RecommenderConfig(
            user_vectors=str(users), item_vectors=str(items), seed=len(str(users))
        )
        made = Run(run.experiment, {"mine": Network(VectorFile, config)})
        return made.network_stage("mine").fingerprint

    before = fingerprint(path)
    moved = path.rename(tmp_path / "another.parquet")
    assert fingerprint(moved) == before
    users_table(windows, positions=True).to_parquet(path)
    assert fingerprint(path) != before


def test_a_run_with_a_file_as_its_recommender_reports_its_dot_products(
    windows: pd.DataFrame, run: Run, items: Path, tmp_path: Path
) -> None:
    path = tmp_path / "users.parquet"
    users_table(windows, positions=True).to_parquet(path)
    experiment = Experiment(
        out=str(tmp_path / "run"),
        prepare=PREPARE,
        recommender=RecommenderConfig(name="file", user_vectors=str(path), item_vectors=str(items)),
    )
    experiment.adapt.methods = ["file"]
    experiment.evaluate.min_history = 0
    experiment.evaluate.bootstrap_samples = 100
    results = Pipeline.of(experiment).run_all()
    assert "file" in [arm["name"] for arm in results["arms"]]
    assert results["seeds"]["recommenders"] == {}
    made = Pipeline.of(experiment).run
    folder = made.network_folder("file")
    assert {one.name for one in folder.iterdir()} == {
        "items.safetensors", "record.json", "representations.safetensors"
    }  # fmt: skip
    data: PreparedData = made.data
    found = Representations.load(folder).scores(
        "test", [0, 7], data.split("test").candidates[[0, 7]]
    )
    own = windows[windows["split"] == "test"].iloc[[0, 7]]
    users = user_vector(own["user_id"], own["position"])
    table = item_vectors(data.num_items)
    expected = np.einsum("nd,ncd->nc", users, table[data.split("test").candidates[[0, 7]]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Such vectors do not come from histories, so those of empty histories stand for something.
    empty = torch.tensor(data.split("test").history_lengths == 0)
    assert empty.any()
    assert made.vectors("file").users["test"][empty].abs().sum() > 0
    assert made.networks["file"].width == made.vectors("file").width == D
    assert read_tensors(folder / "items.safetensors")["embeddings"].shape == (data.num_items, D)


def test_the_checksums_of_both_files_are_inputs(items: Path, tmp_path: Path) -> None:
    made = source(items, items)
    found = made.inputs(Checksums(tmp_path / "checksums.json"))
    assert list(found) == ["recommender.user_vectors", "recommender.item_vectors"]
    assert len(set(found.values())) == 1


def test_the_example_of_the_page_makes_a_file_of_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recommenders.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    made = Run(Experiment(out="runs/own", prepare=PREPARE), {})
    made.prepare()
    exec(compile(code, "my_vectors.py", "exec"), {})
    file = source(Path("own.safetensors"), Path("own.safetensors"))
    users, items = file.vectors(made.data, made.prepare_folder)
    split = made.data.split("test")
    row = int(np.flatnonzero(split.history_lengths == 5)[0])
    expected = items[torch.tensor(split.histories[row][-5:])].mean(dim=0)
    torch.testing.assert_close(users["test"][row], expected)


def test_positions_of_users_and_the_windows_that_ties_leave_out(
    items: Path, tmp_path: Path
) -> None:
    # Every second interaction has the time of the one before.
    rows = [(user, step % 9, (step // 2) * 50 + user) for user in range(12) for step in range(9)]
    table = pd.DataFrame(rows, columns=["user", "item", "time"])
    table.to_csv(tmp_path / "events.csv", index=False)
    prepare = PrepareConfig(
        dataset="custom",
        source=str(tmp_path / "events.csv"),
        protocol="temporal",
        ties="drop",
        num_candidates=3,
        max_history=4,
    )
    made = Run(Experiment(out=str(tmp_path / "run"), prepare=prepare), {})
    made.prepare()
    whole = pd.read_parquet(made.prepare_folder / "interactions.parquet")
    assert sum(len(made.data.split(split)) for split in SPLITS) < len(whole)
    keys = whole[["user_id", "position"]]
    vectors = user_vector(keys["user_id"], keys["position"])
    keys.assign(vector=list(vectors)).to_parquet(tmp_path / "users.parquet")
    save_file({"items": torch.zeros(made.data.num_items, D)}, tmp_path / "items.safetensors")
    reader = source(tmp_path / "users.parquet", tmp_path / "items.safetensors")
    users, _ = reader.vectors(made.data, made.prepare_folder)
    tied = whole.duplicated(["user_id", "timestamp"], keep=False)
    for split in SPLITS:
        own = whole[(whole["split"] == split) & ((split == "train") | ~tied)]
        expected = user_vector(own["user_id"], own["position"])
        np.testing.assert_array_equal(users[split], expected)


def test_rows_that_a_network_could_not_train_on_do_not_matter(
    run: Run, windows: pd.DataFrame, items: Path, tmp_path: Path
) -> None:
    users_table(windows, False).to_parquet(tmp_path / "users.parquet")
    files = {"user_vectors": str(tmp_path / "users.parquet"), "item_vectors": str(items)}
    experiment = Experiment(
        out=str(tmp_path / "run"),
        arms=[{"method": "file"}],
        prepare=replace(PREPARE, max_history=2),  # a network wants three by default
        recommender=RecommenderConfig(name="file", **files),
    )
    experiment.recommender.min_history = experiment.evaluate.min_history = 1
    experiment.adapt.min_history = 1
    experiment.evaluate.bootstrap_samples = 100
    made = Pipeline.of(experiment)
    results = made.run_all()
    assert {entry["method"] for entry in results["metrics"]} >= {"file", "popularity"}


@pytest.mark.parametrize("protocol", ["leave-one-out", "temporal"])
@pytest.mark.parametrize("ties", ["stable", "drop"])
def test_positions_count_all_items_of_a_user_under_every_protocol(
    tmp_path: Path, protocol: str, ties: Literal["stable", "drop"]
) -> None:
    lines = "".join(f"u{n % 5},i{n * n % 7},{1_500_000_000 + n // 7 * 60}\n" for n in range(60))
    visits, folder = tmp_path / "visits.csv", tmp_path / "prepare"
    visits.write_text("user,item,time\n" + lines)
    config = PrepareConfig(
        dataset="custom",
        source=str(visits),
        protocol=protocol,
        ties=ties,
        holdout=0.2 if protocol == "temporal" else 0.1,
        num_candidates=3,
    )
    prepare(config, folder, Checksums(tmp_path / "checksums.json"))
    data = PreparedData.load(folder)
    table = pd.read_parquet(folder / "interactions.parquet")
    users, items = tmp_path / "users.parquet", tmp_path / "items.safetensors"
    keys = table[["user_id", "position"]]
    vectors = list(user_vector(keys["user_id"], keys["position"]))
    keys.assign(vector=vectors).sample(frac=1, random_state=0).to_parquet(users)
    save_file({"items": torch.from_numpy(item_vectors(data.num_items))}, items)
    found, _ = source(users, items).vectors(data, folder)
    rows = table[["user_id", "position", "item_id"]].to_numpy().tolist()
    at = {(user, place): item for user, place, item in rows}
    assert ties == "stable" or len(table) > sum(len(data.split(name)) for name in SPLITS)
    for name in SPLITS:
        own = data.split(name)
        for user, place, owner, target, history in zip(
            found[name][:, 0].tolist(),
            found[name][:, 1].tolist(),
            own.user_ids.tolist(),
            own.targets.tolist(),
            own.history_lengths.tolist(),
            strict=True,
        ):
            assert (user, at[user, place], min(int(place), 10)) == (owner, target, history)
