import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.image import imread

from recipes.artifacts import read_json, read_table, write_json, write_table
from recipes.data.prepare import prepare_stage
from recipes.evaluation.evaluate import _stage, described
from recipes.evaluation.gates import gate_summary
from recipes.evaluation.parts import planned_parts
from recipes.evaluation.protocol import Protocol
from recipes.evaluation.slices import Slicing, slice_differences, slice_entries
from recipes.evaluation.statistics import Resampling
from recipes.evaluation.summary import random_order, summarise
from recipes.experiment import AdaptConfig, EvaluateConfig, Experiment, PrepareConfig, StandInConfig
from recipes.methods.method import arm_folder
from recipes.pipeline import Pipeline
from recipes.report import markdown
from recipes.report.caveats import caveats, unequal_settings
from recipes.report.curves import curves_figure
from recipes.report.markdown import render
from recipes.report.plots import (
    hit_ratio_figure,
    loss_figure,
    mean_curve,
    moving_average,
    save,
    smoothing_window,
    whiskers,
)
from recipes.report.results import trained
from recipes.report.study import study_figure, study_page, study_results
from recipes.report.tables import markdown_table
from recipes.report.verdict import differences, headlines, verdict
from recipes.scoring.rows import EvaluatedRows
from recipes.stages import run_stage

pytestmark = pytest.mark.plots

USERS = 60
HIT_RATES = {"sasrec": 0.5, "lora": 0.3, "ilora": 0.8}
ORDER = [
    {
        "method": "ilora",
        "interval": "bootstrap over users",
        "seeds": [0, 1],
        "orders": 2,
        "value": 0.25,
        "low": 0.125,
        "high": 0.5,
        "num_rows": 50,
        "num_users": 40,
    }
]
HALVES = Slicing("history", ("1", "2", "3 to 5"), np.arange(USERS) // (USERS - 1))
TABLES = ("examples.parquet", "items.parquet", "candidates.parquet")


@pytest.fixture(scope="module", autouse=True)
def no_explorer():
    """The stages of these tests leave no tables to explore; `test_page.py` has some that do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("recipes.report.report.explored", lambda run, arms: None)
        yield


def predictions(arms, seeds, rates):
    """Of every arm that has a rate. Of the first two users, even seeds hit one, odd ones the other:
    intervals over two seeds are so wide that more would hide every difference.
    """
    generator = np.random.default_rng(0)
    tables = []
    for arm in (arm for arm in arms if arm.name in rates):
        hits = generator.random(USERS) < rates[arm.name]
        for seed in range(seeds):
            hit = np.append(np.arange(2) == seed % 2, hits[2:])
            answer = np.where(hit, 5, np.where(generator.random(USERS) < 0.5, 3, -1))
            items = pd.array(answer if arm.method.is_adapter else [None] * USERS, dtype="Int64")
            tables.append(
                pd.DataFrame(
                    {
                        "method": arm.name,
                        "seed": seed,
                        "row": range(USERS),
                        "draw": 0,
                        "user_id": range(USERS),
                        "target": 5,
                        "predicted_item": items,
                        "substring_item": items,
                        "invalid": pd.Series(np.where(answer < 0, "not a candidate", None)),
                        "better": np.where(hit, 0, 3),
                        "tied": 1,
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def trained_files(folder, seed, steps):
    losses = [{"step": step, "loss": 4 / step + seed} for step in range(1, steps + 1)]
    counts = {"adapter": 100, "gate": 8, "projector": 20, "total": 1234}
    write_json(folder / "loss.json", losses)
    write_json(folder / "parameters.json", counts)


def finish_stages(made, rates, steps=30):
    """Write what the stages before the report leave, with made-up predictions."""
    run, experiment = made.run, made.run.experiment

    def prepare(folder):
        manifest = {
            "dataset": experiment.prepare.dataset,
            "protocol": experiment.prepare.protocol,
            "raw_sha256": {},
            "counts": {"interactions": 4400, "items": 32, "users": {"train": 320, "val": 40}},
            "config": {},
        }
        write_json(folder / "manifest.json", manifest)
        for name in TABLES:
            (folder / name).write_text(name)

    prepared = prepare_stage(experiment.prepare, {})
    run_stage(prepared, run.prepare_folder, prepare)
    for name, seed in run.trainings:
        folder = run.network_folder(name, seed)
        run_stage(run.network_stage(name, seed), folder, lambda place: None)
    if run.has_stand_in:
        found = {"stand_in": True, "parameters": 1000, "meaning": "a toy of this test"}
        run_stage(
            run._stand_in,
            run.stand_in_folder,
            lambda place: write_json(place / "stand_in.json", found),
        )
    else:
        vars(run).update(llm_content="a commit")
    for arm, seed in trained(run, made.arms):
        run_stage(
            arm.method.stage(run, arm, seed),
            arm_folder(run, arm, seed),
            lambda place, seed=seed: trained_files(place, seed, steps),
        )
    table = predictions(made.arms, experiment.seeds, rates)
    weights = np.random.default_rng(1).dirichlet([1, 1, 1], size=USERS)
    gate = gate_summary(weights, np.arange(USERS), np.arange(USERS), seed=0)
    gates = {arm.name: gate for arm in made.arms if arm.method.name == "ilora"}
    config, items = experiment.evaluate, 20
    rows = EvaluatedRows(
        split="test",
        rows=np.arange(USERS),
        user_ids=np.arange(USERS),
        targets=np.full(USERS, 5),
        candidates=np.tile(np.arange(items), (USERS, 1)),
        target_index=np.full(USERS, 5),
    )
    protocol, random = Protocol(config, items), random_order(rows.user_ids, np.full(USERS, items))

    def evaluate(folder):
        summary = summarise(table, made.arms, protocol, random, Resampling(samples=200))
        evaluated = described(rows, protocol, random)
        order = [one for one in ORDER if one["method"] in {arm.name for arm in made.arms}]
        slices = slice_entries(
            table, made.arms, protocol, rows, [HALVES], random, Resampling(samples=200)
        )
        differences = slice_differences(
            table, made.arms, protocol, rows, [HALVES], Resampling(samples=200)
        )
        write_json(
            folder / "metrics.json",
            {
                "evaluated": evaluated,
                "slices": slices,
                "slice_differences": differences,
                **summary,
                "order": order,
            },
        )
        write_json(folder / "gates.json", gates)
        write_json(folder / "modulations.json", {})
        write_table(folder / "predictions.parquet", table)

    parts = planned_parts(run, made.arms)
    for part in parts:
        run_stage(part.stage, part.folder, lambda place: None)
    run_stage(_stage(run, made.arms, parts), run.folder / "evaluate", evaluate)


def experiment_in(folder, **changes):
    fields = {
        "name": "a trial",
        "out": str(folder),
        "seeds": 2,
        "prepare": PrepareConfig(protocol="chronological"),
        "evaluate": EvaluateConfig(rows="last", ks=[1, 5], bootstrap_samples=200),
    }
    return Experiment(**{**fields, **changes})


def finished(folder, rates=HIT_RATES, **changes):
    made = Pipeline.of(experiment_in(folder, **changes))
    finish_stages(made, rates)
    return made


def test_a_single_cut_off_has_a_table_of_its_own(tmp_path):
    evaluate = EvaluateConfig(rows="last", ks=[1], bootstrap_samples=200)
    finished(tmp_path, evaluate=evaluate).report()
    page = (tmp_path / "report.md").read_text()
    assert "| HitRatio@1 |" in page and "NDCG@" not in page


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(run directory, results, Markdown, what was returned): two methods and two seeds."""
    run = tmp_path_factory.mktemp("run")
    found = finished(run).report()
    return run, read_json(run / "results.json"), (run / "report.md").read_text(), found


def test_results_hold_metrics_with_label_n_seeds_and_interval(written):
    _, results, _, _ = written
    for entry in results["metrics"]:
        assert entry["label"]
        assert {"value", "low", "high", "interval"} <= entry.keys()
        if entry["interval"] != "exact":
            assert (entry["num_rows"], entry["num_users"]) == (USERS, USERS)
            assert entry["seeds"] == [0, 1]
            assert entry["low"] <= entry["value"] <= entry["high"]
    sampled = [e for e in results["metrics"] if "HitRatio" in e["label"] or "NDCG" in e["label"]]
    assert len(sampled) > 10
    assert all("20 sampled candidates" in entry["label"] for entry in sampled)
    labels = {entry["label"] for entry in results["metrics"]}
    assert "HitRatio@1 (generation, of valid, 20 sampled candidates)" in labels
    assert "ValidRatio (generation, substring rule of the reference)" in labels


def test_a_division_into_one_slice_repeats_no_figures_and_no_differences(written):
    _, results, _, _ = written
    alone = dict(results)
    for name in ("slices", "slice_differences"):
        alone[name] = [entry for entry in results[name] if entry["slice"] == "1"]
    section = markdown._slices(alone)
    assert section.endswith("as the recommender reads it**: all rows are of one slice, 1.")
    assert "minus" not in section and "Differences" not in section


def test_slices_have_a_table_with_their_sizes(written):
    _, results, page, _ = written
    section = page.split("## Slices")[1].split("\n## ")[0]
    assert "| method | 1 (n = 59, 59 users) | 2 (n = 1, 1 users) |" in section
    assert "3 to 5" not in section and "HitRatio@1, generated, of total" in section
    (lora,) = [
        entry
        for entry in results["slices"]
        if entry["method"] == "lora" and entry["slice"] == "1" and "ranking" in entry["key"]
    ]
    assert f"| LoRA | {lora['value']:.3f} [{lora['low']:.3f}, {lora['high']:.3f}] |" in section
    # Of one user: three arms rank, two write, and one is compared by either figure.
    assert section.count("(no interval)") == 7
    assert "| 0.050 | 0.050 |" in section
    (less,) = [
        entry
        for entry in results["slice_differences"]
        if entry["slice"] == "1" and "ranking" in entry["key"]
    ]
    assert (less["method"], less["baseline"]) == ("ilora", "lora") and less["excludes_zero"]
    told = section.split("The same, minus LoRA:")[-1]
    cell = f"**{less['value']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]**"
    assert f"| iLoRA | {cell} | " in told and "| LoRA |" not in told


def test_the_order_of_candidates_has_a_section(written):
    section = written[2].split("## Sensitivity to the order")[1].split("\n## ")[0]
    assert "50 rows of 40 users" in section and "2 other orders" in section
    assert "| iLoRA | 0.250 [0.125, 0.500] |" in section and "LoRA | 0.2" in section


def test_invalid_answers_have_a_table(written):
    _, results, page, _ = written
    head = "| method | answers | empty | cut short | ambiguous | not a candidate | not finite |"
    assert head in page
    counts = {entry["method"]: entry["kinds"] for entry in results["invalid"]}
    assert list(counts) == ["lora", "ilora"]
    assert f"| LoRA | 120 | 0 | 0 | 0 | {counts['lora']['not a candidate']} | 0 |" in page


def test_results_hold_what_repeats_the_run(written):
    _, results, _, _ = written
    assert results["config"] == dataclasses.asdict(experiment_in(written[0]))
    assert results["llm"] == {
        "name": "stand-in",
        "stand_in": True,
        "parameters": 1000,
        "meaning": "a toy of this test",
    }
    assert results["trainable_parameters"]["ilora"]["total"] == 1234
    assert results["dataset"]["counts"]["items"] == 32
    assert results["versions"].keys() >= {"torch", "transformers", "peft"}
    assert results["fingerprints"].keys() == results["seconds"].keys()
    assert {"lora-seed1", "recommender sasrec", "recommender sasrec seed 1"} <= {
        *results["seconds"]
    }
    assert results["seeds"] == {"adapters": [0, 1], "recommenders": {"sasrec": [0, 1]}}
    assert "sasrec with seeds 0, 1" in written[2]


def test_results_hold_the_arms_with_their_settings(written):
    arms = {arm["name"]: arm for arm in written[1]["arms"]}
    assert list(arms) == ["random", "popularity", "sasrec", "lora", "ilora"]
    assert arms["ilora"]["title"] == "iLoRA" and arms["ilora"]["is_adapter"]
    assert arms["ilora"]["settings"]["num_experts"] == 4 and arms["ilora"]["given"] == {}
    assert [name for name, arm in arms.items() if arm["learns"]] == ["sasrec", "lora", "ilora"]


def test_a_report_is_these_files_and_returns_its_results(written):
    run, results, _, found = written
    assert json.loads(json.dumps(found)) == results
    stages = ("prepare/", "recommenders/", "adapt/", "evaluate/")
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith(stages)} == {
        "results.json",
        "report.md",
        "report.html",
        "summary.txt",
        "predictions.parquet",
        *(
            f"plots/{name}.{kind}"
            for name in ("loss", "hit_ratio", "gates-ilora")
            for kind in ("png", "svg")
        ),
    }


def test_predictions_are_copied_unchanged(written):
    run, _, _, _ = written
    copied = read_table(run / "predictions.parquet")
    pd.testing.assert_frame_equal(copied, read_table(run / "evaluate" / "predictions.parquet"))


def test_a_plot_as_svg_is_the_same_each_time_and_keeps_its_words(written, tmp_path):
    first = written[0] / "plots" / "hit_ratio.svg"
    save(hit_ratio_figure(written[1]), tmp_path / "again.png", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == first.read_bytes()
    assert "random order (0.050)" in first.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["loss", "hit_ratio", "gates-ilora"])
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
    assert "The language model is a stand-in**: a toy of this test. The figures" in opening
    assert "Metrics are sampled" in opening
    assert "leaks" not in opening


def test_the_report_tells_n_both_denominators_and_how_to_reproduce(written):
    _, results, text, _ = written
    assert "n = 60 rows, 60 users, 20 sampled candidates" in text
    assert "HitRatio@1 (generation, of total)" in text
    assert "HitRatio@1 (generation, of valid)" in text
    assert "| iLoRA | 100 | 8 | 20 | 1,234 |" in text
    assert all(f"(plots/{name}.png)" in text for name in ("loss", "hit_ratio", "gates-ilora"))
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
    titles = {"lora": {"title": "LoRA"}, "ilora": {"title": "iLoRA"}}
    assert words in verdict(entry, titles)


def pairs(entries):
    return [(e["method"], e["baseline"], e["key"]) for e in entries]


def test_the_headlines_are_the_best_arm_against_its_strongest_rival_by_each_metric(written):
    assert pairs(headlines(written[1])) == [
        ("ilora", "lora", "hit_ratio@1/generation/total"),
        ("ilora", "sasrec", "hit_ratio@1/ranking"),
    ]


def test_the_differences_are_the_headlines_then_pairs_of_adapters_then_against_the_others(written):
    assert pairs(differences(written[1])) == [
        ("ilora", "lora", "hit_ratio@1/generation/total"),
        ("ilora", "sasrec", "hit_ratio@1/ranking"),
        ("ilora", "lora", "hit_ratio@1/ranking"),
        ("lora", "sasrec", "hit_ratio@1/ranking"),
    ]


CONTROLS = AdaptConfig(methods=["lora", "lora-user-slot", "ilora"])


def test_ilora_behind_its_control_is_no_headline_about_lora(tmp_path):
    rates = {"sasrec": 0.1, "lora": 0.2, "lora-user-slot": 0.95, "ilora": 0.6}
    made = finished(tmp_path, rates, adapt=CONTROLS)
    found = made.report()
    assert {(e["method"], e["baseline"]) for e in headlines(found)} == {("ilora", "lora-user-slot")}
    opening = (tmp_path / "report.md").read_text().split("> **Read this first**")[0]
    for text in (opening, (tmp_path / "summary.txt").read_text()):
        assert "on these rows LoRA + user slot beats iLoRA" in text
        assert "iLoRA beats" not in text and "iLoRA minus LoRA is" not in text
    differences = (tmp_path / "report.md").read_text().split("## Differences")[1]
    assert "on these rows iLoRA beats LoRA." in differences  # it is told, in its place


def test_the_strongest_rival_may_be_a_recommender(tmp_path):
    rates = {"sasrec": 0.9, "lora": 0.2, "ilora": 0.5}
    found = finished(tmp_path, rates).report()
    ranked = headlines(found)[-1]
    assert (ranked["method"], ranked["baseline"]) == ("ilora", "sasrec") and ranked["value"] < 0
    assert "on these rows SASRec beats iLoRA" in (tmp_path / "summary.txt").read_text()


def test_arms_of_one_method_have_names_colours_and_gate_plots_of_their_own(tmp_path):
    arms = [{"method": "ilora", "num_experts": 2}, {"method": "ilora", "num_experts": 8}]
    rates = {"sasrec": 0.1, "ilora,num_experts=2": 0.3, "ilora,num_experts=8": 0.9}
    plots = tmp_path / "plots"
    plots.mkdir()
    (plots / "gates-lora.png").write_text("of an earlier report")
    finished(tmp_path, rates, arms=arms).report()
    shown = {
        "hit_ratio.png",
        "loss.png",
        "gates-ilora,num_experts=2.png",
        "gates-ilora,num_experts=8.png",
    }
    assert {path.name for path in plots.glob("*.png")} == shown
    assert {f"{path.stem}.png" for path in plots.glob("*.svg")} == shown
    text = (tmp_path / "report.md").read_text()
    assert "on these rows iLoRA, num_experts 8 beats iLoRA, num_experts 2" in text
    assert set(re.findall(r"\(plots/(.+?)\)", text)) == shown


def test_arms_of_many_settings_leave_room_for_the_axes_of_every_plot(tmp_path):
    many = {"lora_alpha": 48, "gate_learning_rate_scale": 0.125, "gate_scope": "per_module"}
    arms = [{"method": "ilora", "gate": "mlp", "target_modules": ["q_proj", "k_proj"] * 4} | many]
    name = Pipeline.of(Experiment(arms=arms)).arms[-1].name
    results = finished(tmp_path, {"sasrec": 0.1, name: 0.9}, arms=arms).report()
    pictures = list((tmp_path / "plots").glob("*.png"))
    assert len(pictures) == 3
    save(study_figure(study_results("study", [{}], [results])), tmp_path / "study.png")
    for path in [*pictures, tmp_path / "study.png"]:
        pixels = imread(path)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 1).all(), f"something touches the border of {path.name}"


def test_a_figure_beside_its_interval_by_rounding_is_drawn():
    assert whiskers({"value": 0.025, "low": 0.025 + 1e-15, "high": 0.5}) == [[0.0], [0.475]]
    assert whiskers({"value": 0.025, "low": 0.0, "high": 0.025 - 1e-15}) == [[0.025], [0.0]]


def test_a_run_without_a_language_model_is_reported_too(tmp_path):
    found = finished(tmp_path, {"popularity": 0.2, "sasrec": 0.6}, arms=[{"method": "sasrec"}])
    results = found.report()
    assert results["llm"] is None and results["trainable_parameters"] == {}
    text = (tmp_path / "report.md").read_text()
    assert "on these rows SASRec beats Popularity" in text
    told = text.split("## How to reproduce")[0]
    assert not re.search("Generated|Trainable|adapter|answer|stand-in|One seed", told)
    assert "- **Seeds:** sasrec with seeds 0, 1." in text
    assert "language model" not in (tmp_path / "summary.txt").read_text()
    assert not (tmp_path / "plots" / "loss.png").exists()


def test_one_method_without_a_gate_and_one_seed_is_reported_too(tmp_path):
    finished(tmp_path, seeds=1, adapt=AdaptConfig(methods=["lora"])).report()
    text = (tmp_path / "report.md").read_text()
    assert "LoRA minus SASRec" in text
    assert "**One seed** of SASRec; LoRA: what another" in text
    assert not list((tmp_path / "plots").glob("gates*"))
    assert "gates" not in text


def test_a_training_too_short_to_log_a_loss_is_reported_without_the_curve(tmp_path):
    made = Pipeline.of(experiment_in(tmp_path))
    finish_stages(made, HIT_RATES, steps=0)
    made.report()
    assert not (tmp_path / "plots" / "loss.png").exists()
    assert "loss.png" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("prepare", "leaks"),
    [
        (PrepareConfig(dataset="lastfm", protocol="llara"), True),
        (PrepareConfig(dataset="lastfm", protocol="chronological"), False),
        (PrepareConfig(dataset="synthetic", protocol="chronological"), False),
    ],
)
def test_the_lastfm_leak_is_told_where_it_applies(tmp_path, prepare, leaks):
    adapt = AdaptConfig(stand_in=StandInConfig(titles="subword"))  # reads no tables
    finished(tmp_path, prepare=prepare, adapt=adapt).report()
    assert ("This protocol leaks the answer" in (tmp_path / "report.md").read_text()) == leaks
    ceilings = read_json(tmp_path / "results.json")["ceilings"]
    assert (ceilings is None) == (prepare.dataset == "lastfm")


def test_the_score_of_the_unadapted_stand_in_stands_with_its_caveat(tmp_path):
    adapt = AdaptConfig(methods=["zero-shot", "lora"])
    made = finished(tmp_path, rates={"lora": 0.3, "zero-shot": 0.1}, adapt=adapt)
    made.report()
    results = read_json(tmp_path / "results.json")
    (entry,) = (
        one
        for one in results["metrics"]
        if (one["method"], one["key"]) == ("zero-shot", "hit_ratio@1/ranking")
    )
    assert (
        f"Before it is adapted, its ranked HitRatio@1 is {entry['value']:.3f} ["
        in (results["caveats"][0])
    )
    assert "| Zero-shot |" in (tmp_path / "report.md").read_text()


def test_a_real_language_model_is_not_called_a_stand_in(tmp_path):
    finished(tmp_path, adapt=AdaptConfig(llm="some/Llama")).report()
    assert "stand-in language model" not in (tmp_path / "summary.txt").read_text()
    llm = {"name": "some/Llama", "content": "a commit", "stand_in": False}
    assert read_json(tmp_path / "results.json")["llm"] == llm
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


@pytest.mark.parametrize("place", ["metrics", "slices", "slice_differences", "order"])
def test_a_dagger_is_explained_wherever_it_stands(written, place):
    results = json.loads(json.dumps(written[1]))
    for name in ("metrics", "slices", "slice_differences", "comparisons", "order"):
        for entry in results[name]:
            entry["degenerate"] = False
    assert "†" not in render(results, [])
    measured = [e for e in results[place] if e.get("low") is not None and e["interval"] != "exact"]
    measured[0]["degenerate"] = True
    text = render(results, [])
    assert "† Every resample gave the same figure" in text and text.count("†") > 1


def test_a_missing_stage_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m recipes prepare"):
        Pipeline.of(experiment_in(tmp_path)).report()
    assert list(tmp_path.iterdir()) == []
    made = finished(tmp_path)
    (tmp_path / "evaluate" / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match="python -m recipes evaluate"):
        made.report()
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "plots").exists()


def test_the_moving_average_shortens_at_the_ends():
    assert moving_average(np.array([1.0, 2, 3, 4, 8]), 3).tolist() == [1.5, 2, 3, 5, 6]
    assert moving_average(np.array([1.0, 2]), 5).tolist() == [1.5, 1.5]


def test_the_smoothing_window_is_odd_and_grows_with_the_curve():
    assert [smoothing_window(points) for points in (1, 3, 12, 30, 500)] == [1, 1, 3, 5, 5]


def test_trainings_of_different_length_have_one_mean_where_all_of_them_are():
    """As patience ends them, or a choice among trials of other lengths."""
    curves = [[{"step": s, "loss": s + seed} for s in (1, 2, 3)[: 3 - seed]] for seed in range(2)]
    steps, mean = mean_curve(curves, "loss")
    assert steps.tolist() == [1, 2] and mean.tolist() == [1.5, 2.5]
    arm = {"name": "lora", "method": "lora", "title": "LoRA", "colour": "#000000", "line": "-"}
    results = {"name": "x", "arms": [arm | {"given": {}}]}
    drawn = loss_figure({"lora": curves}, results).axes[0].lines
    assert [len(line.get_xdata()) for line in drawn] == [3, 2, 2]
    assert len(loss_figure({"lora": [curves[0][:1], curves[0][1:]]}, results).axes[0].lines) == 3
    cells = [{"curves": {"lora": {"loss": curves}}}]
    (axes,) = curves_figure({**results, "cells": cells}).axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2]]
    validated = [[{"step": p["step"], "validation": 0.5} for p in curve] for curve in curves]
    cells = [{"curves": {"lora": {"validation": validated}}}]
    (axes,) = curves_figure({**results, "cells": cells}).axes
    assert sorted(len(line.get_xdata()) for line in axes.lines) == [2, 2, 3]


def of_steps(last: int) -> list[list[dict[str, float]]]:
    return [[{"step": step, "loss": 1 / step} for step in (1, last)]]


def test_curves_of_every_cell_have_a_column_that_names_it_and_equal_ones_share_it():
    arms = [{"name": name, "given": {}} for name in ("lora", "ilora")]
    cells = [
        {
            "varied": {"adapt.max_steps": last, "evaluate.mask": mask},
            "curves": {"lora": {"loss": of_steps(last)}, "ilora": {"loss": of_steps(last)}},
        }
        for last in (200, 400)
        for mask in ("none", "history")
    ]
    figure = curves_figure({"name": "epochs", "arms": arms, "cells": cells})
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        f"max_steps {last}, mask none; max_steps {last}, mask history" for last in (200, 400)
    ]
    assert [axes.lines[0].get_xdata().tolist() for axes in figure.axes] == [[1, 200], [1, 400]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lora", "ilora"]


def test_no_two_arms_of_a_column_of_curves_look_alike():
    names = [f"arm-{number}" for number in range(20)]
    arms = [{"name": name, "given": {}} for name in names]
    cells = [{"curves": {name: {"loss": of_steps(3)} for name in names}}]
    (axes,) = curves_figure({"name": "x", "arms": arms, "cells": cells}).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20


def test_arms_are_unlike_in_settings_that_they_have():
    arms = [
        {"title": "A", "settings": {"rank": 8, "mistakes": []}},
        {
            "title": "B",
            "settings": {"rank": 8, "mistakes": ["text-only-test"], "weight_decay": 0.1},
        },
    ]
    assert unequal_settings(arms) == {"mistakes": {"none": "A", "text-only-test": "B"}}
    assert unequal_settings([*arms, {"title": "C", "settings": {"rank": 4}}])["rank"] == {
        "8": "A; B",
        "4": "C",
    }


def test_words_that_users_chose_are_no_markup_in_any_file(tmp_path):
    name = "<script>alert(1)</script> $x_$ | *b* & `c` [d](e)"
    arms = [
        {"method": "lora", "exclude_modules": r"^(a|b)$\.<b>*$"},
        {"method": "ilora", "name": "Größe a|b"},
    ]
    names = [arm.name for arm in Pipeline.of(Experiment(arms=arms)).arms[-2:]]
    rates = {"sasrec": 0.1, names[0]: 0.4, names[1]: 0.9}
    results = finished(tmp_path, rates, name=name, arms=arms).report()
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    for table in tables:
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html and "<em>b</em>" not in html and "<b>" not in html
    shown = "&lt;script&gt;alert(1)&lt;/script&gt; $x_$ | *b* &amp; `c` [d](e)"
    assert f"<h1>{shown}</h1>" in html and f"<title>{shown}</title>" in html
    assert r"<td>LoRA, exclude_modules ^(a|b)$\.&lt;b&gt;*$</td>" in html
    assert "<details><summary>experiment.yaml" in html and "<strong>Result.</strong>" in html
    assert html.count("data:image/png;base64,") == 3
    svg = (tmp_path / "plots" / "hit_ratio.svg").read_text(encoding="utf-8")
    assert "$x_$" in svg and "(a|b)$" in svg
    found = study_results("a | <b>", [{"recommender.encoder": "x|<y>"}], [results])
    page_of_study = study_page(found, "a.png", "b.png", "c.png")
    assert "# Study: a \\| &lt;b>" in page_of_study and "<y>" not in page_of_study
    (table,) = [block for block in page_of_study.split("\n\n") if block.startswith("| method")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_cell_holds_its_bars_and_is_one_line():
    table = markdown_table(["a|b", "c"], [["x\ny", r"\|"]])
    assert table.splitlines() == ["| a\\|b | c |", "| --- | --- |", "| x y | \\| |"]
