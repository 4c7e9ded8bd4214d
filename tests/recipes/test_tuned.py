"""A tuned arm is the best of its trials on validation, and a report says what was tried."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes import pipeline
from recipes.artifacts import read_json, read_table
from recipes.evaluation import catalogue
from recipes.experiment import AdaptConfig, Experiment
from recipes.llm.divergence import DivergenceError
from recipes.methods import adapter, tuned
from recipes.methods.adapter import AdapterMethod
from recipes.pipeline import Pipeline
from recipes.report.tuning import tuning_section
from recipes.study import read_study

from .tiny_runs import Runs, copied, redone
from .tiny_runs import refused as one_refusal

ARMS = "[{method: lora, tune: {learning_rate: [0.001, 0.1], rank: [2, 4]}}, {method: ilora}]"
FIGURES = {(0.001, 2): 0.2, (0.001, 4): 0.4, (0.1, 2): 0.4, (0.1, 4): 0.1}


def scripted(run: Any, plan: Any, vectors: Any) -> Any:
    return lambda model: FIGURES[plan.settings.learning_rate, plan.settings.rank]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("tuned"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "hit_ratio_on_validation", scripted)
        assert runs("run", "--arms", ARMS) == 0
    return runs


def test_the_first_of_the_best_trials_predicts(done):
    chosen = read_json(done.folder / "adapt" / "lora-tuned-seed0" / "tuning.json")
    tried = [
        (one["settings"]["learning_rate"], one["settings"]["rank"]) for one in chosen["trials"]
    ]
    assert tried == list(FIGURES) and chosen["chosen"] == 1
    assert [one["validation"] for one in chosen["trials"]] == list(FIGURES.values())
    trained = {path.parent.name for path in done.folder.glob("adapt/*/record.json")}
    trials = {f"lora-tuned,learning_rate={rate},rank={rank}-seed0" for rate, rank in FIGURES}
    assert trained == {"stand-in", "ilora-seed0", "lora-tuned-seed0"} | trials
    results = done.results
    (arm,) = [arm for arm in results["arms"] if arm["name"] == "lora-tuned"]
    assert arm["title"] == "LoRA, best of 4" and arm["settings"]["num_trials"] == 4
    assert arm["settings"]["rank"] == [2, 4]
    # The figures are those of the chosen trial as an arm of its own.
    single = "[{method: lora, learning_rate: 0.001, rank: 4, name: single}, {method: ilora}]"
    other = done.folder.parent / "single"
    assert done("run", "--arms", single, out=other) == 0
    tables = [read_table(folder / "predictions.parquet") for folder in (done.folder, other)]
    one, two = (
        table[table["method"] == name].drop(columns="method").reset_index(drop=True)
        for table, name in zip(tables, ("lora-tuned", "single"), strict=True)
    )
    assert one.equals(two)


def test_the_report_prints_every_trial_and_that_the_other_arm_had_fewer(done):
    page = (done.folder / "report.md").read_text(encoding="utf-8")
    assert "| LoRA, best of 4 | learning_rate 0.001, rank 4 | **0.400** |" in page
    assert "| LoRA, best of 4 | learning_rate 0.1, rank 2 | 0.400 |" in page
    assert "`num_trials` 4 (LoRA, best of 4), 1 (iLoRA)" in page
    assert "`learning_rate` 0.001, 0.1 (LoRA, best of 4), 0.001 (iLoRA)" in page


def test_what_is_done_is_not_done_again_and_a_lost_trial_is(done, capsys):
    capsys.readouterr()
    assert done("run", "--arms", ARMS) == 0
    assert redone(capsys.readouterr().out) == []
    name = "lora-tuned,learning_rate=0.1,rank=2"
    (Path(done.folder) / "adapt" / f"{name}-seed0" / "adapter" / "adapter_config.json").unlink()
    assert done("run", "--arms", ARMS) == 0
    assert redone(capsys.readouterr().out) == [f"adapt {name} seed 0"]


def test_trials_are_shared_among_processes_and_the_choice_comes_after_them(
    done, monkeypatch, tmp_path
):
    """One tuned arm keeps several processes busy."""
    shared: list[list[tuple[str, str, int]]] = []
    monkeypatch.setattr(pipeline, "shared_out", lambda start, tasks, *_: shared.append(tasks))
    monkeypatch.setattr(tuned, "hit_ratio_on_validation", scripted)
    runs = copied(done, tmp_path)
    shutil.rmtree(runs.folder / "adapt")
    fields = ("--arms", ARMS, "--seeds", 2, "--jobs", 2)
    assert runs("adapt", *fields) == 0
    trials, choices = shared
    names = ["ilora", *(f"lora-tuned,learning_rate={rate},rank={rank}" for rate, rank in FIGURES)]
    adapters = [task for task in trials if task[1] != "sasrec"]  # of which nothing is left to do
    assert sorted(adapters) == sorted(("adapt", name, seed) for name in names for seed in (0, 1))
    assert choices == [("adapt", "lora-tuned", 0), ("adapt", "lora-tuned", 1)]


def test_a_trial_that_diverges_loses_and_is_not_trained_again(done, monkeypatch, tmp_path, capsys):
    runs, original = copied(done, tmp_path), AdapterMethod.train
    shutil.rmtree(runs.folder / "adapt" / "lora-tuned-seed0")

    def diverging(self, run, arm, seed, folder):
        if not hopeless and arm.given["learning_rate"] == 0.001:
            return original(self, run, arm, seed, folder)
        (folder / "checkpoints").mkdir()
        raise DivergenceError("too fast")

    def without_trials():
        for path in runs.folder.glob("adapt/lora-tuned,*"):
            shutil.rmtree(path)

    monkeypatch.setattr(tuned, "hit_ratio_on_validation", scripted)
    monkeypatch.setattr(AdapterMethod, "train", diverging)
    hopeless = False
    without_trials()
    assert runs("run", "--arms", ARMS) == 0
    found = read_json(runs.folder / "adapt" / "lora-tuned-seed0" / "tuning.json")
    assert [one["validation"] for one in found["trials"]] == [0.2, 0.4, None, None]
    assert found["chosen"] == 1
    left = runs.folder / "adapt" / "lora-tuned,learning_rate=0.1,rank=2-seed0"
    assert read_json(left / "diverged.json") == {"why": "too fast"}
    assert sorted(path.name for path in left.iterdir()) == ["diverged.json", "record.json"]
    page = (runs.folder / "report.md").read_text(encoding="utf-8")
    assert "| LoRA, best of 4 | learning_rate 0.1, rank 2 | diverged |" in page
    capsys.readouterr()
    assert runs("run", "--arms", ARMS) == 0
    assert redone(capsys.readouterr().out) == []
    hopeless = True
    without_trials()
    shutil.rmtree(runs.folder / "adapt" / "lora-tuned-seed0")
    assert runs("run", "--arms", ARMS) == 2
    assert "all 4 trials of lora-tuned seed 0 have diverged" in one_refusal(capsys.readouterr().err)


def test_an_arm_that_diverges_is_refused_as_ever(done, monkeypatch, tmp_path, capsys):
    def diverging(*given):
        raise DivergenceError("too fast")

    monkeypatch.setattr(AdapterMethod, "train", diverging)
    assert copied(done, tmp_path)("run", "--adapt.learning_rate", 0.5) == 2
    assert "too fast" in one_refusal(capsys.readouterr().err)


def test_rows_of_validation_that_cannot_be_ranked_are_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capsys
):
    def none(run, settings):
        raise ValueError("no rows of validation")

    monkeypatch.setattr(adapter, "validation_rows", none)
    for place, fields in enumerate((("--arms", ARMS), ("--adapt.validate_at", "[1]"))):
        runs = Runs(tmp_path / str(place))
        assert runs("run", *fields) == 2
        assert "no rows of validation" in one_refusal(capsys.readouterr().err)
        assert not list(runs.folder.glob("recommenders/*")) + list(runs.folder.glob("adapt/*"))


def refused(*arms: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r"method |adapt\.|arm ") as found:
        Pipeline.of(Experiment(arms=list(arms), adapt=AdaptConfig()))
    return str(found.value)


def test_a_grid_that_is_none_is_refused():
    lora = {"method": "lora"}
    assert "tune={} must name settings and the values to try" in refused({**lora, "tune": {}})
    assert "tune.rank=8 must be a list" in refused({**lora, "tune": {"rank": 8}})
    assert "has the same settings twice" in refused({**lora, "tune": {"rank": [8, 8]}})
    assert "has no setting 'ranks'" in refused({**lora, "tune": {"ranks": [8]}})
    assert "not divisible by adapt.num_experts=4" in refused(
        {"method": "ilora", "tune": {"rank": [8, 6]}}
    )
    assert "the arm sets rank=4, and tune tries values of it" in refused(
        {**lora, "rank": 4, "tune": {"rank": [8]}}
    )
    assert "tune.min_history would rank other rows of validation" in refused(
        {**lora, "tune": {"min_history": [1, 3]}}
    )
    assert "arm name='lora-tuned,rank=8' is the folder of a trial" in refused(
        {**lora, "tune": {"rank": [8]}}, {**lora, "name": "lora-tuned,rank=8"}
    )
    same = ["q_proj", "v_proj"], ["q_proj+v_proj"]
    assert "arm name='lora-tuned,target_modules=q_proj+v_proj' is" in refused(
        {**lora, "tune": {"target_modules": list(same)}}
    )
    assert "is for adapters of a language model" in refused(
        {"method": "sasrec", "tune": {"dropout": [0.1]}}
    )


def test_seeds_choose_for_themselves():
    trials = [[{"settings": {"rank": rank}, "validation": rank / 10} for rank in (2, 4)]] * 2
    tuning = [{"seed": seed, "trials": trials[seed], "chosen": 1 - seed} for seed in (0, 1)]
    text = tuning_section({"lora-tuned": tuning}, {"lora-tuned": {"title": "LoRA"}}, 1000)
    assert "| arm | trial | seed 0 | seed 1 |" in text and "on 1,000 validation rows" in text
    assert "| LoRA | rank 2 | 0.200 | **0.200** |\n| LoRA | rank 4 | **0.400** | 0.400 |" in text


@pytest.mark.parametrize("small", [True, False])
def test_the_shipped_study_gives_every_arm_as_many_trials(small):
    study = read_study("tuned", None, [], small=small)
    arms = Pipeline.of(study.cells[0].experiment).arms
    trials = {arm.name: arm.settings["num_trials"] for arm in arms if arm.method.is_adapter}
    names = ("lora-tuned", "lora-user-slot-tuned", "ilora-tuned", "scale-tuned")
    assert trials == dict.fromkeys(names, 6)


def test_the_chosen_trial_ranks_all_items_and_every_adapter_is_loaded_once(monkeypatch, tmp_path):
    loaded, original = [], adapter.adapted_model

    def counted(plan, *given):
        loaded.append(plan.label)
        return original(plan, *given)

    monkeypatch.setattr(adapter, "adapted_model", counted)
    monkeypatch.setattr(tuned, "hit_ratio_on_validation", scripted)
    monkeypatch.setattr(catalogue, "SCORES", 1)  # one row at a time
    arms = "[{method: lora, tune: {rank: [2, 4]}}, {method: lora, rank: 4, name: single}]"
    whole = ("--evaluate.candidates", "catalogue", "--evaluate.decoding", "candidates")
    beams = ("--evaluate.num_beams", 2, "--evaluate.ks", "[1]", "--adapt.list_candidates", "false")
    runs = Runs(tmp_path)
    assert runs("run", "--arms", arms, *whole, *beams) == 0
    assert sorted(loaded) == ["lora-tuned,rank=4 seed 0", "single seed 0"]
    table = read_table(runs.folder / "predictions.parquet")
    one, two = (
        table[table["method"] == name].drop(columns="method").reset_index(drop=True)
        for name in ("lora-tuned", "single")
    )
    assert len(one) > 1 and one.equals(two)
