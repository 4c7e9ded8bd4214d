"""Slices of the evaluated rows: which rows they hold, and that figures are those of these rows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recipes.arms import comparison
from recipes.data.tables import PreparedData, Split
from recipes.evaluation.protocol import Protocol
from recipes.evaluation.slices import (
    slice_differences,
    slice_entries,
    slicings,
    train_counts,
)
from recipes.evaluation.statistics import Resampling, paired_difference
from recipes.evaluation.summary import random_order
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
)
from recipes.pipeline import Pipeline
from recipes.scoring.rows import evaluated_rows, left_out

ARMS = comparison(Experiment(arms=[{"method": "popularity"}, {"method": "lora"}])).arms
LENGTHS = [0, 1, 1, 2, 2, 5, 6, 10]


def split_of(lengths, targets, histories=None) -> Split:
    count = len(targets)
    empty = np.full((count, 10), -1)
    return Split(
        user_ids=np.arange(count) // 2,
        histories=empty if histories is None else histories,
        history_lengths=np.array(lengths),
        targets=np.array(targets),
        candidates=np.tile(np.arange(10), (count, 1)),
        is_last=np.arange(count) % 2 == 1,
    )


def data() -> PreparedData:
    """Items 0 .. 4 occur 0, 1, 9, 10 and 150 times in train, 5 only in a history."""
    targets = np.repeat([1, 2, 3, 4], [1, 9, 10, 150])
    histories = np.full((len(targets), 10), -1)
    histories[3, -2:] = [5, 1]
    train = split_of(np.zeros(len(targets)), targets, histories)
    test = split_of(LENGTHS, [0, 1, 2, 3, 4, 5, 0, 4])
    return PreparedData([f"t{item}" for item in range(10)], {"train": train, "test": test})


def rows_of(**changes):
    return evaluated_rows(data(), EvaluateConfig(rows="all", ks=[1], min_history=0, **changes))


def test_items_are_counted_by_the_train_windows_they_are_targets_of():
    found = data()
    counts = train_counts(found.split("train"), found.num_items)
    assert counts.tolist() == [0, 1, 9, 10, 150, 1, 0, 0, 0, 0]


def test_rows_fall_into_slices_by_history_and_by_frequency():
    history, frequency = slicings(data(), rows_of())
    assert (history.by, frequency.by) == ("history", "frequency")
    names = [history.names[index] for index in history.slices]
    assert names == ["0", "1", "1", "2", "2", "3 to 5", "6 to 9", "10 or more"]
    names = [frequency.names[index] for index in frequency.slices]
    cold = "cold"
    assert names == [
        cold,
        "1 to 9",
        "1 to 9",
        "10 to 99",
        "100 or more",
        "1 to 9",
        cold,
        "100 or more",
    ]


def test_what_min_history_leaves_out_is_counted():
    tables = data()
    config = EvaluateConfig(rows="all", ks=[1], min_history=3)
    assert left_out(tables, config) == {"short_rows": 5, "short_users": 2}
    assert left_out(tables, replace(config, rows="last")) == {"short_rows": 2, "short_users": 2}
    assert left_out(tables, replace(config, min_history=0)) == {"short_rows": 0, "short_users": 0}


@pytest.mark.parametrize("draws", [1, 2])
def test_a_slices_figures_are_those_of_its_rows_alone(draws):
    rows, config = rows_of(), EvaluateConfig(rows="all", ks=[1, 3], min_history=0)
    count, generator = len(rows) * draws, np.random.default_rng(0)
    if draws > 1:
        rows = rows.take(np.repeat(np.arange(len(rows)), draws))
    protocol = Protocol(config, 10, draws)
    tables = []
    for arm, seeds in (("popularity", 1), ("lora", 2)):
        for seed in range(seeds):
            answers = np.where(generator.random(count) < 0.5, rows.targets, -1)
            tables.append(
                pd.DataFrame(
                    {
                        "method": arm,
                        "seed": seed,
                        "row": rows.rows,
                        "draw": np.tile(np.arange(draws), count // draws),
                        "user_id": rows.user_ids,
                        "target": rows.targets,
                        "predicted_item": pd.array(
                            answers if arm == "lora" else [None] * count, dtype="Int64"
                        ),
                        "better": generator.integers(0, 3, count),
                        "tied": 1,
                    }
                )
            )
    table = pd.concat(tables, ignore_index=True)
    random = random_order(rows.user_ids, np.full(count, 10))
    divisions = slicings(data(), rows)
    found = slice_entries(table, ARMS, protocol, rows, divisions, random, Resampling(samples=100))
    assert {entry["slice"] for entry in found if entry["by"] == "frequency"} == {
        "cold",
        "1 to 9",
        "10 to 99",
        "100 or more",
    }
    for division in divisions:
        for index in np.unique(division.slices):
            name = division.names[index]
            chosen = rows.rows[division.slices == index]
            for arm in ("popularity", "lora"):
                own = table[(table["method"] == arm) & table["row"].isin(chosen)]
                entries = {
                    entry["key"]: entry
                    for entry in found
                    if (entry["by"], entry["slice"], entry["method"]) == (division.by, name, arm)
                }
                ranked = entries["hit_ratio@1/ranking"]
                assert ranked["value"] == pytest.approx((own["better"] == 0).mean())
                assert ranked["num_rows"] == len(np.unique(chosen))
                assert ranked["num_users"] == own["user_id"].nunique()
                assert (ranked["low"] is None) == (ranked["num_users"] == 1)
                generated = entries.get("hit_ratio@1/generation/total")
                assert (generated is not None) == (arm == "lora")
                if generated is not None:
                    right = (own["predicted_item"] == own["target"]).mean()
                    assert generated["value"] == pytest.approx(right)
    exact = [entry for entry in found if entry["method"] == "random"]
    assert exact and all(entry["value"] == pytest.approx(0.1) for entry in exact)


def test_adapters_are_compared_with_plain_lora_within_each_slice():
    methods = ("tallrec", "lora", "ilora", "popularity")
    arms = comparison(Experiment(arms=[{"method": one} for one in methods])).arms
    rows = rows_of()
    count, generator = len(rows), np.random.default_rng(1)
    tables = {
        (name, seed): pd.DataFrame(
            {
                "method": name,
                "seed": seed,
                "row": rows.rows,
                "draw": 0,
                "user_id": rows.user_ids,
                "target": rows.targets,
                "predicted_item": pd.array([None] * count, dtype="Int64"),
                "better": generator.integers(0, 2, count),
                "tied": 1,
            }
        )
        for name in methods
        for seed in range(1 if name == "popularity" else 2)
    }
    protocol = Protocol(EvaluateConfig(rows="all", ks=[1], min_history=0), 10)
    divisions, resampling = slicings(data(), rows), Resampling(samples=100)
    table = pd.concat(tables.values(), ignore_index=True)
    found = slice_differences(table, arms, protocol, rows, divisions, resampling)
    # No arm writes answers, so there is one metric; each slice with rows is there once for each.
    places = [(e["by"], e["slice"], e["method"], e["baseline"]) for e in found]
    assert len(set(places)) == len(places) == 2 * (6 + 4)
    assert {(e["method"], e["baseline"]) for e in found} == {("tallrec", "lora"), ("ilora", "lora")}
    for entry in found:
        (division,) = [one for one in divisions if one.by == entry["by"]]
        own = division.slices == division.names.index(entry["slice"])
        hits = {
            name: np.stack([tables[name, seed]["better"].to_numpy()[own] == 0 for seed in (0, 1)])
            for name in (entry["method"], "lora")
        }
        mine, other = (hits[name].astype(float) for name in (entry["method"], "lora"))
        assert entry["value"] == pytest.approx(mine.mean() - other.mean())
        users = rows.user_ids[own]
        assert (entry["num_rows"], entry["num_users"]) == (own.sum(), len(np.unique(users)))
        if entry["num_users"] == 1:
            assert entry["low"] is None and not entry["excludes_zero"]
            continue
        ones = np.ones_like(mine)
        wanted = paired_difference((mine, ones), (other, ones), users, resampling, same_seeds=True)
        assert (entry["low"], entry["high"]) == (wanted.low, wanted.high)
    for by, size in (("history", 6), ("frequency", 4)):
        own = [e for e in found if e["by"] == by and e["method"] == "ilora"]
        assert len(own) == size and sum(e["num_rows"] for e in own) == count
    alone = comparison(Experiment(arms=[{"method": "ilora"}, {"method": "tallrec"}])).arms
    found = slice_differences(table, alone, protocol, rows, divisions, resampling)
    assert {(e["method"], e["baseline"]) for e in found} == {("ilora", "tallrec")}


def test_users_of_one_or_two_items_are_evaluated_down_to_the_language_models_rows(tmp_path):
    """In the ring every user has windows with 0, 1, 2, .. items of history."""
    stand_in = StandInConfig(
        hidden_size=16, num_heads=2, num_layers=1, intermediate_size=16, max_steps=2, batch_size=4
    )
    experiment = Experiment(
        out=str(tmp_path),
        prepare=PrepareConfig(dataset="ring", protocol="chronological", num_candidates=5),
        recommender=RecommenderConfig(hidden_size=8, num_layers=1, max_epochs=1, min_history=1),
        arms=[{"method": "sasrec"}, {"method": "ilora"}],
        adapt=AdaptConfig(max_steps=2, batch_size=4, rank=4, min_history=1, stand_in=stand_in),
        evaluate=EvaluateConfig(
            rows="first", min_history=1, ks=[1], bootstrap_samples=100, order_rows=8, num_beams=2
        ),
    )
    results = Pipeline.of(experiment).run_all()
    split = PreparedData.load(tmp_path / "prepare").split("test")
    users = len(np.unique(split.user_ids))
    own = [entry for entry in results["slices"] if entry["by"] == "history"]
    assert {(entry["slice"], entry.get("num_rows", users)) for entry in own} == {("1", users)}
    assert {entry["method"] for entry in own} >= {"random", "popularity", "sasrec", "ilora"}
    assert results["evaluated"]["short_users"] == 0
    (order,) = results["order"]
    assert (order["method"], order["num_rows"], order["num_users"]) == ("ilora", 8, 8)
    assert order["answers"]["num_rows"] == 8 and 0 <= order["answers"]["value"] <= 1
    keys = {entry["key"] for entry in results["metrics"] if entry["method"] == "ilora"}
    assert "hit_ratio@1/beams" in keys and "hit_ratio@1/generation/total" in keys
    page = (tmp_path / "report.md").read_text()
    assert "| method | first choice changes | answer changes |" in page
    assert results["slice_differences"] == []  # a single adapter
    for heading in ("## Slices", "## Sensitivity to the order of candidates", "The beams as a"):
        assert heading in page
    assert "by 2 beams, the likeliest of which counts" in page
    kinds = {entry["method"]: entry for entry in results["invalid"]}
    assert kinds["ilora"]["answers"] == users and sum(kinds["ilora"]["kinds"].values()) <= users
