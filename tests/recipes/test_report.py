import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.image import imread

from recipes.artifacts import read_json, read_table, run_stage, sha256, write_json, write_table
from recipes.evaluation.gates import gate_summary
from recipes.evaluation.statistics import Resampling
from recipes.evaluation.summary import summarise
from recipes.experiment import AdaptConfig, EvaluateConfig, Experiment, PrepareConfig
from recipes.report.markdown import render
from recipes.report.plots import moving_average, smoothing_window
from recipes.report.report import report
from recipes.report.results import caveats
from recipes.report.verdict import headlines, verdict

USERS = 60
HIT_RATES = {"sasrec": 0.5, "lora": 0.3, "ilora": 0.8}


def predictions(methods, seeds):
    generator = np.random.default_rng(0)
    tables = []
    for method in ("sasrec", *methods):
        for seed in range(1 if method == "sasrec" else seeds):
            hit = generator.random(USERS) < HIT_RATES[method]
            answer = np.where(hit, 5, np.where(generator.random(USERS) < 0.5, 3, -1))
            tables.append(
                pd.DataFrame(
                    {
                        "method": method,
                        "seed": seed,
                        "row": range(USERS),
                        "user_id": range(USERS),
                        "target": 5,
                        "predicted_item": pd.array(answer, dtype="Int64"),
                        "substring_item": pd.array(answer, dtype="Int64"),
                        "rank": np.where(hit, 1, 4),
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def finish_stages(run, experiment):
    """Write what the stages before the report leave, with made-up predictions."""
    methods, seeds = experiment.adapt.methods, experiment.seeds
    manifest = {
        "dataset": experiment.prepare.dataset,
        "protocol": experiment.prepare.protocol,
        "raw_sha256": {},
        "counts": {"interactions": 4400, "items": 32, "users": {"train": 320, "val": 40}},
        "config": {},
    }
    write_json(run / "prepare" / "manifest.json", manifest)
    run_stage("prepare", run / "prepare", {}, {}, lambda: None)
    run_stage("recommender", run / "recommender", {"seed": 0}, {}, lambda: None)
    stand_in = {"stand_in": True, "parameters": 1000}
    write_json(run / "adapt" / "stand-in" / "stand_in.json", stand_in)
    for method in methods:
        for seed in range(seeds):
            folder = run / "adapt" / f"{method}-seed{seed}"
            losses = [{"step": step, "loss": 4 / step + seed} for step in range(1, 31)]
            counts = {"adapter": 100, "gate": 8, "projector": 20, "total": 1234}
            write_json(folder / "loss.json", losses)
            write_json(folder / "parameters.json", counts)
            run_stage("adapt", folder, {}, {}, lambda: None)
    table = predictions(methods, seeds)
    weights = np.random.default_rng(1).dirichlet([1, 1, 1], size=USERS)
    gate = gate_summary(weights, np.arange(USERS), np.arange(USERS), seed=0)
    evaluated = {
        "split": "test",
        "rows": experiment.evaluate.rows,
        "min_history": 3,
        "max_users": experiment.evaluate.max_users,
        "num_rows": USERS,
        "num_users": USERS,
        "num_candidates": 20,
    }

    def evaluate():
        summary = summarise(table, experiment.evaluate.ks, 20, Resampling(samples=200))
        write_json(run / "evaluate" / "metrics.json", {"evaluated": evaluated, **summary})
        write_json(run / "evaluate" / "gates.json", {"ilora": gate} if "ilora" in methods else {})
        write_table(run / "evaluate" / "predictions.parquet", table)

    run_stage("evaluate", run / "evaluate", {}, {}, evaluate)


def finished(tmp_path, **changes):
    fields = {
        "name": "a trial",
        "seeds": 2,
        "evaluate": EvaluateConfig(ks=[1, 5], bootstrap_samples=200),
    }
    experiment = Experiment(**{**fields, **changes})
    finish_stages(tmp_path, experiment)
    return experiment


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(run directory, results, Markdown, record) of a report on two methods and two seeds."""
    run = tmp_path_factory.mktemp("run")
    record = report(finished(run), run)
    return run, read_json(run / "results.json"), (run / "report.md").read_text(), record


def test_results_hold_metrics_with_label_n_seeds_and_interval(written):
    _, results, _, _ = written
    for entry in results["metrics"]:
        assert entry["label"]
        assert {"value", "low", "high", "interval"} <= entry.keys()
        if entry["interval"] != "exact":
            assert (entry["num_rows"], entry["num_users"]) == (USERS, USERS)
            assert entry["seeds"] == ([0] if entry["method"] == "sasrec" else [0, 1])
            assert entry["low"] <= entry["value"] <= entry["high"]
    sampled = [e for e in results["metrics"] if "HitRatio" in e["label"] or "NDCG" in e["label"]]
    assert len(sampled) > 10
    assert all("20 sampled candidates" in entry["label"] for entry in sampled)
    labels = {entry["label"] for entry in results["metrics"]}
    assert "HitRatio@1 (generation, of valid, 20 sampled candidates)" in labels
    assert "ValidRatio (generation, substring rule of the reference)" in labels


def test_results_hold_what_repeats_the_run(written):
    _, results, _, _ = written
    assert results["config"] == dataclasses.asdict(
        Experiment(
            name="a trial", seeds=2, evaluate=EvaluateConfig(ks=[1, 5], bootstrap_samples=200)
        )
    )
    assert results["llm"] == {"name": "stand-in", "stand_in": True, "parameters": 1000}
    assert results["trainable_parameters"]["ilora"]["total"] == 1234
    assert results["dataset"]["counts"]["items"] == 32
    assert results["versions"].keys() >= {"torch", "transformers", "peft"}
    assert results["fingerprints"].keys() == results["seconds"].keys()
    assert "lora-seed1" in results["seconds"]


def test_the_record_names_every_file_with_its_checksum(written):
    run, _, _, record = written
    assert record.files.keys() == {
        "results.json",
        "report.md",
        "summary.txt",
        "predictions.parquet",
        "plots/loss.png",
        "plots/hit_ratio.png",
        "plots/gates.png",
    }
    assert all(sha256(run / name) == digest for name, digest in record.files.items())


def test_predictions_are_copied_unchanged(written):
    run, _, _, _ = written
    copied = read_table(run / "predictions.parquet")
    pd.testing.assert_frame_equal(copied, read_table(run / "evaluate" / "predictions.parquet"))


@pytest.mark.parametrize("name", ["loss", "hit_ratio", "gates"])
def test_plots_are_pictures_with_something_on_them(written, name):
    pixels = imread(written[0] / "plots" / f"{name}.png")
    assert min(pixels.shape[:2]) > 400
    assert 0.01 < (pixels[..., :3] < 0.9).any(axis=2).mean() < 0.9
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 1).all(), "something touches the border, so it may be clipped"


def test_the_report_opens_with_result_and_caveats(written):
    opening = written[2].split("## What was run")[0]
    assert opening.startswith("# a trial\n\n**Result.** HitRatio@1 (generation, of total")
    assert "iLoRA minus LoRA is +0." in opening
    assert "**excludes zero**: on these rows iLoRA beats LoRA" in opening
    assert "The language model is a stand-in" in opening
    assert "Metrics are sampled" in opening
    assert "leaks" not in opening


def test_the_report_tells_n_both_denominators_and_how_to_reproduce(written):
    _, results, text, _ = written
    assert "n = 60 rows, 60 users, 20 sampled candidates" in text
    assert "HitRatio@1 (generation, of total)" in text
    assert "HitRatio@1 (generation, of valid)" in text
    assert "| iLoRA | 100 | 8 | 20 | 1,234 |" in text
    assert all(f"(plots/{name}.png)" in text for name in ("loss", "hit_ratio", "gates"))
    assert "python -m recipes run experiment.yaml" in text
    block = text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == results["config"]


def test_every_table_row_has_as_many_cells_as_its_head(written):
    tables = [block for block in written[2].split("\n\n") if block.startswith("| ")]
    assert len(tables) >= 6
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_terminal_summary_shows_methods_and_the_first_comparison(written):
    text = (written[0] / "summary.txt").read_text()
    assert "language model: stand-in (a toy" in text
    assert "SASRec" in text
    assert "excludes zero: on these rows iLoRA beats LoRA" in text
    assert "**" not in text
    assert max(map(len, text.splitlines()[:8])) < 120


def comparison(value, low, high, **changes):
    entry = {
        "method": "ilora",
        "baseline": "lora",
        "key": "hit_ratio@1/ranking",
        "label": "HitRatio@1",
        "value": value,
        "low": low,
        "high": high,
        "confidence": 0.95,
        "degenerate": False,
        "excludes_zero": low > 0 or high < 0,
    }
    return entry | changes


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (comparison(0.1, 0.02, 0.2), "**excludes zero**: on these rows iLoRA beats LoRA"),
        (comparison(-0.1, -0.2, -0.02), "**excludes zero**: on these rows LoRA beats iLoRA"),
        (comparison(0.1, -0.02, 0.2), "**includes zero**: this run does not show a difference"),
        (comparison(0.0, 0.0, 0.0, degenerate=True), "says nothing about its uncertainty"),
        (comparison(None, 0, 0), "cannot be compared"),
    ],
)
def test_a_verdict_says_plainly_what_the_interval_shows(entry, words):
    assert words in verdict(entry)


def test_the_headline_is_ilora_against_lora_by_generated_answers(written):
    listed = headlines(written[1]["comparisons"])
    assert [(e["method"], e["baseline"], e["key"]) for e in listed] == [
        ("ilora", "lora", "hit_ratio@1/generation/total"),
        ("ilora", "lora", "hit_ratio@1/ranking"),
        ("ilora", "sasrec", "hit_ratio@1/ranking"),
        ("lora", "sasrec", "hit_ratio@1/ranking"),
    ]


def test_one_method_without_a_gate_and_one_seed_is_reported_too(tmp_path):
    experiment = finished(tmp_path, seeds=1, adapt=AdaptConfig(methods=["lora"]))
    report(experiment, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "LoRA minus SASRec" in text
    assert "one seed" in text
    assert not (tmp_path / "plots" / "gates.png").exists()
    assert "gates.png" not in text


@pytest.mark.parametrize(
    ("prepare", "leaks"),
    [
        (PrepareConfig(dataset="lastfm", protocol="llara"), True),
        (PrepareConfig(dataset="lastfm", protocol="chronological"), False),
        (PrepareConfig(dataset="synthetic", protocol="llara"), False),
    ],
)
def test_the_lastfm_leak_is_told_where_it_applies(tmp_path, prepare, leaks):
    report(finished(tmp_path, prepare=prepare), tmp_path)
    assert ("This protocol leaks the answer" in (tmp_path / "report.md").read_text()) == leaks
    ceilings = read_json(tmp_path / "results.json")["ceilings"]
    assert (ceilings is None) == (prepare.dataset == "lastfm")


def test_a_real_language_model_is_not_called_a_stand_in(tmp_path):
    experiment = finished(tmp_path, adapt=AdaptConfig(llm="some/Llama"))
    report(experiment, tmp_path)
    assert "stand-in language model" not in (tmp_path / "summary.txt").read_text()
    assert read_json(tmp_path / "results.json")["llm"] == {"name": "some/Llama", "stand_in": False}
    assert "The language model is a stand-in" not in (tmp_path / "report.md").read_text()


def test_weak_methods_few_users_and_a_cut_are_caveats(written):
    results = json.loads(json.dumps(written[1]))
    assert not any("Not clearly above" in caveat for caveat in caveats(results))
    results["evaluated"] |= {"num_users": 12, "max_users": 12}
    for entry in results["metrics"]:
        if (entry["method"], entry["key"]) == ("lora", "hit_ratio@1/ranking"):
            entry |= {"value": 0.06, "low": 0.01}
        if (entry["method"], entry["key"]) == ("ilora", "valid_ratio/generation"):
            entry |= {"value": 0.2}
    found = " ".join(caveats(results))
    assert "Only 12 users" in found
    assert "first 12 users were evaluated" in found
    assert "LoRA (0.060, interval from 0.010)" in found
    assert "iLoRA (ValidRatio 0.200)" in found


def test_methods_below_the_ceiling_of_the_last_item_are_a_caveat(written):
    results = json.loads(json.dumps(written[1]))
    for ceiling, told in ((0.01, False), (0.999, True)):
        results["ceilings"] = {"last_item": ceiling, "oracle": 1.0}
        assert ("Below what the last item alone allows" in " ".join(caveats(results))) == told


def test_an_undefined_ratio_is_a_dash(written):
    results = json.loads(json.dumps(written[1]))
    for entry in results["metrics"]:
        if (entry["method"], entry["key"]) == ("lora", "hit_ratio@1/generation/valid"):
            entry["value"] = None
    section = render(results, []).split("## Generated answers")[1]
    line = next(line for line in section.splitlines() if line.startswith("| LoRA |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert [cell == "–" for cell in cells] == [False, False, True, False, False]


def test_a_missing_stage_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m recipes evaluate"):
        report(Experiment(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_moving_average_shortens_at_the_ends():
    assert moving_average(np.array([1.0, 2, 3, 4, 8]), 3).tolist() == [1.5, 2, 3, 5, 6]
    assert moving_average(np.array([1.0, 2]), 5).tolist() == [1.5, 1.5]


def test_the_smoothing_window_is_odd_and_grows_with_the_curve():
    assert [smoothing_window(points) for points in (1, 3, 12, 30, 500)] == [1, 1, 3, 5, 5]
