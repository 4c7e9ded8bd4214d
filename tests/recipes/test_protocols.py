"""The stage prepare under every protocol, against a naive reading of what the protocol says."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from recipes.artifacts import read_json, read_table
from recipes.checksums import Checksums
from recipes.data import prepare as preparing
from recipes.data.candidates import CandidateStream
from recipes.data.order import TieRule
from recipes.data.prepare import prepare
from recipes.data.splits import SPLITS, SplitName
from recipes.data.tables import PreparedData
from recipes.datasets.dataset import BY_TIME, Dataset, Interactions
from recipes.experiment import PrepareConfig
from recipes.registry import Registry

USERS, ITEMS, ROWS, WIDTH = 30, 60, 300, 4
ALL_RULES: tuple[TieRule, ...] = get_args(TieRule)


class Noise(Dataset):
    """Random interactions; times are few, so that many are equal. No user meets an item twice."""

    name = "noise"
    summary = "for tests"
    protocols = ("llara", *BY_TIME)
    changes: Mapping[str, Any] = {}
    recurring = False

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions:
        random = np.random.default_rng(5)
        pairs = random.choice(USERS * ITEMS, ROWS, replace=False)
        users, items = np.divmod(pairs, ITEMS)
        times = users + random.integers(0, 40, ROWS)
        table = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
        if self.recurring:
            table = pd.concat([table, table.assign(timestamp=90)], ignore_index=True)
        titles = [f"title {item}" for item in range(ITEMS)]
        keys = [f"item {item}" for item in range(ITEMS)]
        users = [f"user {user}" for user in range(USERS)]
        table = table.assign(**self.changes)
        return Interactions(table, titles, None, keys, users)


@pytest.fixture(autouse=True)
def noise(monkeypatch: pytest.MonkeyPatch) -> Noise:
    dataset = Noise()
    monkeypatch.setattr(preparing, "DATASETS", Registry("dataset", dataset))
    return dataset


def config_of(protocol: str, **fields: Any) -> PrepareConfig:
    given = {"dataset": "noise", "max_history": WIDTH, "num_candidates": 5, "holdout": 0.1}
    return PrepareConfig(protocol=protocol, **given | fields)


def made(config: PrepareConfig, folder: Path) -> PreparedData:
    prepare(config, folder / "prepare", Checksums(folder / "checksums.json"))
    return PreparedData.load(folder / "prepare")


def rows_of(folder: Path) -> list[tuple[int, int, int, SplitName]]:
    """(user, item, time, split) of every interaction, in the order of interactions.parquet."""
    table = read_table(folder / "prepare" / "interactions.parquet")
    columns = (table[name].tolist() for name in ("user_id", "item_id", "timestamp", "split"))
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("protocol", BY_TIME)
@pytest.mark.parametrize("ties", ALL_RULES)
def test_windows_agree_with_the_protocol_read_naively(
    tmp_path: Path, protocol: str, ties: TieRule
) -> None:
    data = made(config_of(protocol, ties=ties, tie_seed=3 if ties == "random" else 0), tmp_path)
    rows = rows_of(tmp_path)
    raw = Noise().read(config_of(protocol), {}).table
    assert sorted(row[:3] for row in rows) == sorted(raw.itertuples(index=False, name=None))
    walks: dict[int, list[tuple[int, int, SplitName]]] = {}
    for user, item, time, split in rows:
        walks.setdefault(user, []).append((item, time, split))
    expected: dict[str, list[tuple]] = {name: [] for name in SPLITS}
    for user, walk in walks.items():
        times = [time for _, time, _ in walk]
        assert times == sorted(times)
        for place, (item, time, split) in enumerate(walk):
            if ties == "drop" and split != "train" and times.count(time) > 1:
                continue
            earlier = [one for one, _, _ in walk[:place]]
            expected[split].append((user, earlier, item))
    for name, split in data.splits.items():
        found = expected[name]
        assert split.user_ids.tolist() == [user for user, _, _ in found]
        assert split.targets.tolist() == [target for _, _, target in found]
        for history, (_, earlier, _) in zip(split.histories.tolist(), found, strict=True):
            seen = earlier[-WIDTH:]
            assert history == [-1] * (WIDTH - len(seen)) + seen
        values, lengths = data.earlier(name, np.arange(len(split)))
        assert lengths.tolist() == [len(earlier) for _, earlier, _ in found]
        assert values.tolist() == [item for _, earlier, _ in found for item in earlier]
        last = {user: row for row, (user, _, _) in enumerate(found)}
        assert np.flatnonzero(split.is_last).tolist() == sorted(last.values())


def test_earlier_items_of_some_rows_are_those_of_all(tmp_path: Path) -> None:
    data = made(config_of("temporal"), tmp_path)
    values, lengths = data.earlier("test", np.arange(len(data.split("test"))))
    whole = np.split(values, lengths.cumsum())[:-1]
    some = np.array([7, 2, 2])
    values, lengths = data.earlier("test", some)
    assert values.dtype == lengths.dtype == np.int64
    assert values.tolist() == np.concatenate([whole[row] for row in some]).tolist()
    assert data.earlier("val", np.empty(0, np.int64))[0].tolist() == []


def test_in_leave_one_out_each_users_last_item_is_tested(tmp_path: Path) -> None:
    data = made(config_of("leave-one-out"), tmp_path)
    walks: dict[int, list[int]] = {}
    for user, item, _, _ in rows_of(tmp_path):
        walks.setdefault(user, []).append(item)
    long = {user: walk for user, walk in walks.items() if len(walk) >= 3}
    for name, place in (("test", -1), ("val", -2)):
        split = data.split(name)  # type: ignore[arg-type]
        found = dict(zip(split.user_ids.tolist(), split.targets.tolist(), strict=True))
        assert found == {user: walk[place] for user, walk in long.items()}
        assert split.is_last.all()


def test_in_temporal_no_target_of_training_comes_after_a_cut(tmp_path: Path) -> None:
    made(config_of("temporal"), tmp_path)
    times = {name: [row[2] for row in rows_of(tmp_path) if row[3] == name] for name in SPLITS}
    assert max(times["train"]) < min(times["val"]) <= max(times["val"]) < min(times["test"])
    counts = read_json(tmp_path / "prepare" / "manifest.json")["counts"]
    assert sum(counts["users"].values()) > USERS  # users are in several splits


@pytest.mark.parametrize("protocol", BY_TIME)
def test_candidates_come_from_each_splits_own_stream(tmp_path: Path, protocol: str) -> None:
    data = made(config_of(protocol), tmp_path)
    for name, split in data.splits.items():
        stream = CandidateStream(ITEMS, 5, 1234, name)
        expected = stream.draw(split.histories, split.targets)
        np.testing.assert_array_equal(split.candidates, expected)
        assert split.further_candidates is None


@pytest.mark.parametrize("at_once", [7, 2**20])
def test_further_candidates_are_drawn_for_validation_and_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    once = made(config_of("leave-one-out"), tmp_path / "one")
    monkeypatch.setattr(preparing, "WRITTEN_AT_ONCE", at_once)
    data = made(config_of("leave-one-out", candidate_draws=3), tmp_path / "three")
    for name, split in data.splits.items():
        np.testing.assert_array_equal(split.candidates, once.split(name).candidates)
        if name == "train":
            assert split.further_candidates is None
            continue
        assert split.further_candidates is not None
        assert split.further_candidates.shape == (len(split), 2, 5)
        for number in (1, 2):
            stream = CandidateStream(ITEMS, 5, 1234, name, number)
            expected = stream.draw(split.histories, split.targets)
            np.testing.assert_array_equal(split.further_candidates[:, number - 1], expected)
    table = read_table(tmp_path / "three" / "prepare" / "candidates.parquet")
    assert set(table["draw"]) == {0, 1, 2}
    assert not ((table["split"] == "train") & (table["draw"] > 0)).any()


@pytest.mark.parametrize("negatives", ["visible", "whole", "catalogue"])
def test_negatives_avoid_what_they_are_told_to(tmp_path: Path, negatives: Any) -> None:
    config = config_of("temporal", negatives=negatives, num_candidates=30)
    data = made(config, tmp_path)
    met: dict[int, set[int]] = {}
    for user, item, _, _ in rows_of(tmp_path):
        met.setdefault(user, set()).add(item)
    hit = {"history": False, "later": False}
    for split in data.splits.values():
        for user, history, target, candidates in zip(
            split.user_ids, split.histories, split.targets, split.candidates, strict=True
        ):
            drawn = set(candidates.tolist()) - {target}
            assert len(drawn) == 29
            hit["history"] |= bool(drawn & set(history.tolist()))
            hit["later"] |= bool(drawn & (met[user] - set(history.tolist())))
    assert hit["history"] == (negatives == "catalogue")
    assert hit["later"] == (negatives != "whole")
    manifest = read_json(tmp_path / "prepare" / "manifest.json")
    assert manifest["negatives"] in "".join(manifest["notes"])


def test_negatives_that_give_away_a_recurring_target_are_told(tmp_path: Path, noise: Noise) -> None:
    noise.recurring = True
    for number, negatives in enumerate((None, "visible")):
        config = config_of("leave-one-out", ties="stable", negatives=negatives)
        made(config, tmp_path / str(number))
        manifest = read_json(tmp_path / str(number) / "prepare" / "manifest.json")
        leaks = "only be the target" in manifest["notes"][-1]
        assert leaks == (negatives == "visible")


def test_the_manifest_tells_protocol_and_ties(tmp_path: Path) -> None:
    made(config_of("leave-one-out", ties="random", tie_seed=8), tmp_path)
    manifest = read_json(tmp_path / "prepare" / "manifest.json")
    walks: dict[int, list[int]] = {}
    for user, _, time, _ in rows_of(tmp_path):
        walks.setdefault(user, []).append(time)
    tied = sum(times[-2:] == [times[-1]] * 2 for times in walks.values())
    same = sum(one == next for times in walks.values() for one, next in pairwise(times))
    assert manifest["ties"] == {
        "rule": "random",
        "seed": 8,
        "users": USERS,
        "users_with_tied_last": tied,
        "share_of_neighbours": same / (ROWS - USERS),
    }
    protocol, ties, negatives = manifest["notes"]
    assert protocol.startswith("**Protocol `leave-one-out`**: each user's last interaction is for")
    assert f"the last interaction of {tied} of {USERS} users" in ties
    assert ties.endswith("Their order is drawn from seed 8.")
    assert negatives.endswith("from all items but the target and the visible history.")


def test_ids_of_the_source_stand_beside_those_of_the_tables(tmp_path: Path) -> None:
    data = made(config_of("leave-one-out", core=5), tmp_path)
    items = read_table(tmp_path / "prepare" / "items.parquet")
    users = read_table(tmp_path / "prepare" / "users.parquet")
    table = read_table(tmp_path / "prepare" / "interactions.parquet")
    assert items["item_id"].tolist() == list(range(data.num_items)) and data.num_items < ITEMS
    assert items["key"].tolist() == [title.replace("title", "item") for title in data.titles]
    assert users["user_id"].tolist() == sorted(set(table["user_id"]))
    assert users["key"].tolist() == [f"user {user}" for user in users["user_id"]]
    for name in ("user_id", "item_id"):
        assert min(Counter(table[name].tolist()).values()) >= 5


@pytest.mark.parametrize(
    ("protocol", "fields", "message"),
    [
        ("llara", {"ties": "random"}, "prepare.ties='random': prepare.protocol='llara' has"),
        ("llara", {"core": 5}, "prepare.core=5: prepare.protocol='llara' has"),
        ("llara", {"min_rating": 4.0}, "prepare.min_rating=4.0: prepare.protocol='llara' has"),
        ("llara", {"tie_seed": 3}, "prepare.tie_seed=3: only prepare.ties=random reads it"),
        ("temporal", {"tie_seed": 3, "ties": "drop"}, "prepare.tie_seed=3: only prepare.ties"),
        ("llara", {"holdout": 0.2}, "prepare.holdout=0.2: only prepare.protocol=temporal reads"),
        ("chronological", {"holdout": 0.2}, "prepare.holdout=0.2: only prepare.protocol=temporal"),
        ("temporal", {"train_share": 0.5}, "prepare.train_share=0.5: under prepare.protocol='temp"),
        ("leave-one-out", {"min_rating": 4.0}, "prepare.min_rating=4: the dataset noise has no"),
        ("leave-one-out", {"titles": "reference"}, "prepare.titles='reference': the reference"),
        ("leave-one-out", {"core": 50}, "prepare.core=50 leaves no interactions of 300"),
        ("chronological", {"core": 0}, "prepare.core=0 must be at least 1"),
    ],
)
def test_settings_that_a_protocol_does_not_read_are_refused(
    tmp_path: Path, protocol: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(config_of(protocol, **fields), tmp_path)
    assert not (tmp_path / "prepare").exists()


@pytest.mark.parametrize(
    ("protocol", "ties", "changes", "message"),
    [
        ("leave-one-out", "random", {"timestamp": pd.NA}, "have no times, and keep the order of"),
        ("leave-one-out", "random", {"position": 0}, "have an order of their own; leave it out"),
        ("temporal", None, {"timestamp": pd.NA}, "'temporal' cuts in time"),
        ("temporal", None, {"timestamp": 7}, "holdout=0.1 leaves no interactions in train"),
        ("leave-one-out", "drop", {"timestamp": 7}, "ties='drop' leaves no window of val"),
    ],
)
def test_data_that_a_protocol_can_do_nothing_with_are_refused(
    tmp_path: Path, noise: Noise, protocol: str, ties: Any, changes: Any, message: str
) -> None:
    noise.changes = changes
    with pytest.raises(ValueError, match=message):
        made(config_of(protocol, ties=ties), tmp_path)
    assert not (tmp_path / "prepare").exists()


def test_without_times_users_and_items_keep_the_order_of_the_file(
    tmp_path: Path, noise: Noise
) -> None:
    noise.changes = {"timestamp": pd.array([None] * ROWS, "Int64")}
    made(config_of("leave-one-out"), tmp_path)
    raw = noise.read(config_of("leave-one-out"), {}).table
    expected = [
        (user, item)
        for user in raw["user_id"].unique()
        for item in raw["item_id"][raw["user_id"] == user]
    ]
    assert [row[:2] for row in rows_of(tmp_path)] == expected
    assert read_json(tmp_path / "prepare" / "manifest.json")["ties"] is None


def test_an_order_drawn_from_another_seed_is_another_stage(tmp_path: Path) -> None:
    config = config_of("leave-one-out", ties="random")
    found = []
    for number, seed in enumerate((0, 0, 1)):
        made(replace(config, tie_seed=seed), tmp_path / str(number))
        found.append(rows_of(tmp_path / str(number)))
    assert found[0] == found[1] != found[2]
