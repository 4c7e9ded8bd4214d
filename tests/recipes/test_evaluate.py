import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recipes.arms import comparison
from recipes.artifacts import read_json, read_table, write_tensors
from recipes.data.tables import PreparedData, Split
from recipes.evaluation.gates import gate_summary
from recipes.evaluation.protocol import Protocol
from recipes.evaluation.statistics import Resampling
from recipes.evaluation.summary import random_order, summarise
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    SyntheticConfig,
)
from recipes.methods import adapter
from recipes.methods.method import arm_folder
from recipes.pipeline import Pipeline
from recipes.recommenders.popularity import Popularity
from recipes.scoring import predictions
from recipes.scoring.generate import Generated
from recipes.scoring.rows import evaluated_rows
from recipes.stages import run_stage

METHODS = ["lora", "ilora"]
CONFIG = EvaluateConfig(rows="last", ks=[1, 5], bootstrap_samples=200)


class FakeAdapted:
    """Names the target in every `every`-th row and babbles in the others; likelihoods alike."""

    def __init__(self, data: PreparedData, every: int, gated: bool) -> None:
        self.data, self.every, self.gated = data, every, gated
        self.tokenizer, self.answer_ids = None, data.titles
        self.answer_end = None

    def knows(self, row: int) -> bool:
        return row % self.every == 0

    def prompt_lengths(self, split, rows):
        return np.ones(len(rows), dtype=np.int64)

    lists_candidates = False

    def modulations(self, split, rows):
        return {}

    def gate_weights(self, split, rows):
        weights = torch.tensor([row / 1000 for row in rows])
        return torch.stack([weights, 1 - weights], dim=1) if self.gated else None


def fake_answers(adapted, split, rows, lengths, **_):
    targets = adapted.data.split(split).targets
    texts = [adapted.data.titles[targets[row]] if adapted.knows(row) else "?" for row in rows]
    beams = [["?", text] if text != "?" else ["?"] for text in texts]
    return Generated(texts, [row % 4 == 1 for row in rows], beams)


def fake_scores(adapted, split, rows, lengths, candidates, **_):
    targets = adapted.data.split(split).targets[rows]
    known = np.array([adapted.knows(row) for row in rows])
    return np.where(candidates == targets[:, None], np.where(known, 1.0, -1.0)[:, None], 0.0)


def pipeline(folder: Path, methods=METHODS, seeds=1, config=CONFIG) -> Pipeline:
    """A run that never loads a language model."""
    made = Pipeline.of(
        Experiment(
            out=str(folder),
            seeds=seeds,
            prepare=PrepareConfig(
                protocol="chronological", synthetic=SyntheticConfig(num_users=80)
            ),
            recommender=RecommenderConfig(hidden_size=2, seed=7),
            adapt=AdaptConfig(methods=methods),
            evaluate=config,
        )
    )
    vars(made.run).update(llm_content="weights", llm=None, prompts=None)
    return made


@pytest.fixture(scope="module")
def finished_stages(tmp_path_factory) -> Path:
    """The stages before `evaluate`, with two seeds of adapters that hold nothing."""
    folder = tmp_path_factory.mktemp("run")
    made = pipeline(folder, seeds=2)
    made.prepare()
    run, data = made.run, made.run.data

    def vectors(place):
        users = {name: torch.ones(len(split), 2) for name, split in data.splits.items()}
        write_tensors(place / "representations.safetensors", users)
        items = torch.arange(data.num_items).float()[:, None].repeat(1, 2)
        write_tensors(place / "items.safetensors", {"embeddings": items})

    for name, seed in run.trainings:
        run_stage(run.network_stage(name, seed), run.network_folder(name, seed), vectors)
    for arm in made.arms:
        for seed in arm.method.seeds(run.experiment, arm.settings):
            stage = arm.method.stage(run, arm, seed)
            if stage is not None:
                run_stage(stage, arm_folder(run, arm, seed), lambda place: None)
    return folder


@pytest.fixture
def run(finished_stages, tmp_path, monkeypatch):
    """(folder, data, labels of loaded adapters) of a run that is finished but for `evaluate`."""
    folder = shutil.copytree(finished_stages, tmp_path / "run")
    data = pipeline(folder).run.data
    loaded = []

    @contextmanager
    def adapted_model(plan, llm, store, vectors, folder):
        loaded.append(plan.label)
        gated = plan.routed_by is not None
        yield FakeAdapted(data, 2 if gated else 4, gated)

    monkeypatch.setattr(adapter, "adapted_model", adapted_model)
    monkeypatch.setattr(predictions, "generate_answers", fake_answers)
    monkeypatch.setattr(predictions, "score_candidates", fake_scores)
    monkeypatch.setattr(predictions, "written_titles", lambda _, titles, end: titles)
    return folder, data, loaded


def evaluate(folder, methods=METHODS, seeds=1, **changes):
    pipeline(folder, methods, seeds, replace(CONFIG, **changes)).evaluate()


def entry_of(metrics, method, key):
    (found,) = [e for e in metrics["metrics"] if (e["method"], e["key"]) == (method, key)]
    return found


def test_metrics_are_those_of_the_answers_and_scores(run):
    folder, data, _ = run
    evaluate(folder, seeds=2)
    metrics = read_json(folder / "evaluate" / "metrics.json")
    rows = np.flatnonzero(data.split("test").is_last)
    for method, every in (("lora", 4), ("ilora", 2)):
        share = np.mean(rows % every == 0)
        assert 0 < share < 1
        total = entry_of(metrics, method, "hit_ratio@1/generation/total")
        assert total["value"] == pytest.approx(share)
        assert total["label"] == "HitRatio@1 (generation, of total, 20 sampled candidates)"
        assert total["low"] <= share <= total["high"]
        assert (total["seeds"], total["per_seed"]) == ([0, 1], [total["value"]] * 2)
        assert (total["num_rows"], total["num_users"]) == (8, 8)
        assert entry_of(metrics, method, "hit_ratio@1/generation/valid")["value"] == 1.0
        assert entry_of(metrics, method, "valid_ratio/generation")["value"] == pytest.approx(share)
        ranked = entry_of(metrics, method, "hit_ratio@5/ranking")
        assert ranked["value"] == pytest.approx(share)
        assert ranked["label"] == "HitRatio@5 (likelihood, 20 sampled candidates)"
    assert entry_of(metrics, "random", "hit_ratio@5/ranking")["value"] == 0.25
    assert entry_of(metrics, "sasrec", "valid_ratio/generation")["value"] == 1.0
    assert entry_of(metrics, "sasrec", "hit_ratio@1/ranking")["seeds"] == [7, 8]


def test_nothing_is_written_where_decoding_is_none_and_rankings_stay(run, monkeypatch):
    folder, _, _ = run
    evaluate(folder)
    before = read_json(folder / "evaluate" / "metrics.json")

    def refuse(*_, **__):
        raise AssertionError("nothing may be generated")

    monkeypatch.setattr(predictions, "generate_answers", refuse)
    evaluate(folder, decoding="none")
    after = read_json(folder / "evaluate" / "metrics.json")
    ranked = {
        name: [entry for entry in before[name] if entry["key"].endswith("/ranking")]
        for name in ("metrics", "comparisons")
    }
    assert len(ranked["metrics"]) < len(before["metrics"])
    assert {name: after[name] for name in ranked} == ranked
    assert after["invalid"] == []


def test_invalid_answers_are_counted_by_kind(run):
    folder, data, _ = run
    evaluate(folder, seeds=2)
    found = {e["method"]: e for e in read_json(folder / "evaluate" / "metrics.json")["invalid"]}
    rows = np.flatnonzero(data.split("test").is_last)
    assert list(found) == METHODS
    for method, every in (("lora", 4), ("ilora", 2)):
        cut, other = (int(2 * np.sum(kind)) for kind in (rows % 4 == 1, rows % 4 == 3))
        other += int(2 * np.sum(rows % 4 == 2)) if every == 4 else 0
        assert found[method]["answers"] == 16
        assert found[method]["kinds"] == {
            "empty": 0,
            "cut short": cut,
            "ambiguous": 0,
            "not a candidate": other,
            "not finite": 0,
        }
        assert cut and other


def test_a_row_without_finite_scores_is_a_miss_and_the_others_stay(run, monkeypatch):
    folder, data, _ = run
    rows = np.flatnonzero(data.split("test").is_last)
    bad = next(row for row in rows if row % 4 == 0)  # a hit of both arms

    def scores(adapted, split, rows, lengths, candidates, **_):
        found = fake_scores(adapted, split, rows, lengths, candidates)
        found[np.asarray(rows) == bad, 3] = np.inf
        return found

    monkeypatch.setattr(predictions, "score_candidates", scores)
    evaluate(folder)
    metrics = read_json(folder / "evaluate" / "metrics.json")
    assert metrics["evaluated"]["lost_rows"] == {"lora": 1, "ilora": 1}
    hits = np.sum(rows % 2 == 0) - 1
    for key in ("hit_ratio@1/ranking", "hit_ratio@1/generation/total"):
        assert entry_of(metrics, "ilora", key)["value"] == pytest.approx(hits / len(rows))
    table = read_table(folder / "evaluate" / "predictions.parquet")
    (line,) = table[(table["method"] == "ilora") & table["lost"]].itertuples()
    assert (line.row, line.better, line.tied) == (bad, 19, 1)
    assert (line.invalid, line.valid, line.predicted_item) == ("not finite", False, -1)

    def none(adapted, split, rows, lengths, candidates, **_):
        return np.full(candidates.shape, np.nan)

    monkeypatch.setattr(predictions, "score_candidates", none)
    with pytest.raises(ValueError, match="no row's scores are finite"):
        evaluate(folder, batch_size=3)


def test_a_difference_is_ilora_minus_lora_on_the_same_rows(run):
    folder, _, _ = run
    evaluate(folder, seeds=2)
    metrics = read_json(folder / "evaluate" / "metrics.json")
    key = "hit_ratio@1/generation/total"
    (found,) = [entry for entry in metrics["comparisons"] if entry["key"] == key]
    assert (found["method"], found["baseline"]) == ("ilora", "lora")
    ilora, lora = (entry_of(metrics, method, key)["value"] for method in ("ilora", "lora"))
    assert found["value"] == pytest.approx(ilora - lora)
    assert found["per_seed"] == pytest.approx([ilora - lora] * 2)
    ranked = [(e["method"], e["baseline"]) for e in metrics["comparisons"] if "@5" in e["key"]]
    assert ("ilora", "sasrec") in ranked
    assert ("sasrec", "popularity") in ranked


def test_predictions_hold_every_method_seed_and_row(run):
    folder, data, _ = run
    evaluate(folder, seeds=2)
    table = read_table(folder / "evaluate" / "predictions.parquet")
    counts = table.groupby(["method", "seed"]).size().to_dict()
    expected = {(method, seed): 8 for method in METHODS for seed in (0, 1)}
    assert counts == expected | {("popularity", 0): 8, ("sasrec", 7): 8, ("sasrec", 8): 8}
    sasrec = table[table["method"] == "sasrec"]
    assert sasrec[["output", "predicted_item", "valid", "substring_item"]].isna().all().all()
    split = data.split("test")
    for line in table[table["method"] == "ilora"].itertuples():
        assert line.target == split.targets[line.row]
        assert line.user_id == split.user_ids[line.row]
        assert line.predicted_item == (line.target if line.row % 2 == 0 else -1)
        assert bool(line.valid) == (line.predicted_item >= 0)
        assert (line.better, line.tied) == ((0, 1) if line.row % 2 == 0 else (19, 1))
        assert len(line.scores) == 20


def test_sasrec_is_scored_by_its_vectors(run):
    folder, data, _ = run
    evaluate(folder, ["lora"])
    table = read_table(folder / "evaluate" / "predictions.parquet")
    candidates = data.split("test").candidates
    for line in table[table["method"] == "sasrec"].itertuples():
        assert line.scores.tolist() == (2.0 * candidates[line.row]).tolist()
        assert line.better == (candidates[line.row] > line.target).sum()


def test_a_killed_evaluation_resumes_with_the_missing_part(run, monkeypatch):
    folder, _, loaded = run
    load = adapter.adapted_model

    def killed(plan, *given):
        if plan.label == "ilora seed 1":
            raise KeyboardInterrupt
        return load(plan, *given)

    with monkeypatch.context() as patch:
        patch.setattr(adapter, "adapted_model", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, seeds=2)
    assert loaded == ["lora seed 0", "lora seed 1", "ilora seed 0"]
    assert not (folder / "evaluate" / "metrics.json").exists()
    evaluate(folder, seeds=2)
    assert loaded[3:] == ["ilora seed 1"]


def test_other_cutoffs_and_intervals_run_no_model_again(run):
    folder, _, loaded = run
    evaluate(folder)
    loaded.clear()
    evaluate(folder, ks=[1, 3], confidence=0.8)
    assert loaded == []
    metrics = read_json(folder / "evaluate" / "metrics.json")
    assert entry_of(metrics, "lora", "ndcg@3/ranking")["confidence"] == 0.8
    evaluate(folder, max_new_tokens=5)
    assert loaded == ["lora seed 0", "ilora seed 0"]


def test_gates_are_summarised_for_gated_methods_only(run):
    folder, data, _ = run
    evaluate(folder, batch_size=3)
    gates = read_json(folder / "evaluate" / "gates.json")
    assert list(gates) == ["ilora"]
    rows = np.flatnonzero(data.split("test").is_last)
    assert gates["ilora"]["rows"] == rows.tolist()
    expected = np.stack([rows / 1000, 1 - rows / 1000], axis=1)
    np.testing.assert_allclose(gates["ilora"]["weights"], expected, rtol=1e-6)
    assert gates["ilora"]["num_rows"] == 8


def test_a_missing_training_is_named_before_anything_is_written(run):
    folder, _, _ = run
    shutil.rmtree(folder / "adapt" / "lora-seed1")
    with pytest.raises(FileNotFoundError, match="lora-seed1"):
        evaluate(folder, seeds=2)
    with pytest.raises(FileNotFoundError, match="sasrec-seed9"):
        evaluate(folder, seeds=3)
    assert not (folder / "evaluate").exists()


def test_arms_are_evaluated_by_their_names_and_another_arm_runs_the_others_not_again(run):
    folder, _, loaded = run
    evaluate(folder, ["lora"])
    evaluate(folder, METHODS)
    assert loaded == ["lora seed 0", "ilora seed 0"]
    metrics = read_json(folder / "evaluate" / "metrics.json")
    assert {entry["method"] for entry in metrics["metrics"]} == {
        "random",
        "popularity",
        "sasrec",
        "lora",
        "ilora",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": [1, 21]}, r"evaluate.ks holds \[21\].*20 candidates"),
        ({"ks": [0]}, "evaluate.ks"),
        ({"max_users": 1}, "max_users"),
        ({"min_history": 99}, "min_history"),
        ({"bootstrap_samples": 5}, "bootstrap_samples"),
        ({"decoding": "none", "num_beams": 2}, "evaluate.decoding='none' writes nothing"),
        ({"decoding": "none", "max_new_tokens": 9}, "evaluate.decoding='none' writes nothing"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(run, change, message):
    folder, _, _ = run
    with pytest.raises(ValueError, match=message):
        evaluate(folder, **change)
    assert not (folder / "evaluate").exists()


def small_split() -> Split:
    return Split(
        user_ids=np.array([9, 9, 9, 4, 4, 7]),
        histories=np.zeros((6, 5), dtype=np.int64),
        history_lengths=np.array([2, 3, 4, 3, 4, 2]),
        targets=np.array([0, 1, 2, 3, 4, 5]),
        candidates=np.stack([np.arange(6)] * 6),
        is_last=np.array([False, False, True, False, True, True]),
    )


def small_data() -> PreparedData:
    return PreparedData([f"title {item}" for item in range(6)], {"test": small_split()})


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"rows": "last"}, [2, 4]),
        ({"rows": "first"}, [1, 3]),
        ({"rows": "first", "min_history": 0}, [0, 3, 5]),
        ({"rows": "first", "min_history": 0, "max_users": 2}, [0, 3]),
        ({"rows": "all"}, [1, 2, 3, 4]),
        ({"rows": "last", "min_history": 0}, [2, 4, 5]),
        ({"rows": "all", "min_history": 0, "max_users": 2}, [0, 1, 2, 3, 4]),
    ],
)
def test_rows_are_chosen_by_kind_history_and_first_users(change, rows):
    found = evaluated_rows(small_data(), EvaluateConfig(ks=[1], **change))
    assert found.rows.tolist() == rows
    assert found.targets.tolist() == found.target_index.tolist() == rows


def test_candidates_without_their_target_are_refused():
    split = small_split()
    split.candidates[2, 2] = 1
    with pytest.raises(ValueError, match=r"row 2 of split 'test'.*prepare stage again"):
        evaluated_rows(replace(small_data(), splits={"test": split}), EvaluateConfig(ks=[1]))


def test_popularity_counts_train_interactions_and_leaves_ties():
    split = replace(small_split(), targets=np.array([2, 2, 1, 3]))
    counter = Popularity(split, 5)
    scores = counter.scores(np.zeros((1, 5), dtype=np.int64), np.array([[0, 1, 2, 3, 4]]))
    assert scores.tolist() == [[0, 1, 2, 1, 0]]


def test_gate_summaries_show_the_last_row_of_the_first_ten_users():
    users = np.repeat(np.arange(30, 18, -1), 2)  # 12 users in falling order, two rows each
    weights = np.stack([np.linspace(0, 1, 24), 1 - np.linspace(0, 1, 24)], axis=1)
    found = gate_summary(weights, users, np.arange(24) + 100, seed=0)
    assert found["user_ids"] == list(range(30, 20, -1))
    assert found["rows"] == list(range(101, 121, 2))
    assert found["weights"][0] == weights[1].tolist()
    assert found["mean_weights"] == pytest.approx([0.5, 0.5])


def test_gate_entropy_is_zero_for_one_expert_and_log_k_for_all():
    rows = np.arange(2)
    one = gate_summary(np.array([[1.0, 0, 0, 0]] * 2), rows, rows, seed=0)
    even = gate_summary(np.full((2, 4), 0.25), rows, rows, seed=0)
    assert one["mean_entropy"] == 0.0
    assert even["mean_entropy"] == pytest.approx(even["uniform_entropy"]) == np.log(4)


ARMS = comparison(Experiment(arms=[{"method": "lora"}, {"method": "ilora"}])).arms


def predictions_of(method, seed, items, ranks):
    count = len(items)
    return pd.DataFrame(
        {
            "method": [method] * count,
            "seed": [seed] * count,
            "row": range(count),
            "draw": 0,
            "user_id": range(count),
            "target": [5] * count,
            "predicted_item": pd.array(items, dtype="Int64"),
            "substring_item": pd.array(items, dtype="Int64"),
            "invalid": [None if item >= 0 else "not a candidate" for item in items],
            "better": np.asarray(ranks) - 1,
            "tied": 1,
        }
    )


def summary_of(table, **changes):
    protocol = Protocol(EvaluateConfig(**{"ks": [1], **changes}), 20)
    random = random_order(np.arange(4), np.full(4, 20))
    return summarise(table, ARMS, protocol, random, Resampling(samples=100))


def test_seeds_are_averaged_and_shown_one_by_one():
    table = pd.concat(
        [
            predictions_of("lora", 0, [5, -1, 5, 3], [1, 2, 1, 4]),
            predictions_of("lora", 1, [5, 5, 5, -1], [1, 1, 1, 9]),
        ]
    )
    summary = summary_of(table)
    total = entry_of(summary, "lora", "hit_ratio@1/generation/total")
    assert (total["value"], total["per_seed"]) == (0.625, [0.5, 0.75])
    valid = entry_of(summary, "lora", "hit_ratio@1/generation/valid")
    assert (valid["value"], valid["per_seed"]) == (
        pytest.approx(5 / 6),
        [pytest.approx(2 / 3), 1.0],
    )


def test_a_method_that_never_answers_has_an_undefined_ratio_of_valid():
    tables = [predictions_of(name, 0, [-1, -1, -1], [2, 2, 1]) for name in ("lora", "ilora")]
    summary = summary_of(pd.concat(tables))
    key = "hit_ratio@1/generation/valid"
    assert entry_of(summary, "lora", key)["value"] is None
    (found,) = [entry for entry in summary["comparisons"] if entry["key"] == key]
    assert found["value"] is None


def test_seeds_with_other_rows_are_refused():
    table = pd.concat(
        [predictions_of("lora", 0, [5, 5], [1, 1]), predictions_of("lora", 1, [5] * 3, [1] * 3)]
    )
    with pytest.raises(ValueError, match="different rows"):
        summary_of(table)
