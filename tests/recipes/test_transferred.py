"""Adapters that are trained on one dataset and evaluated on another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recipes.artifacts import read_json, read_table, read_tensors
from recipes.data.splits import SPLITS
from recipes.datasets.ring import ITEMS
from recipes.datasets.synthetic import titles
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    SyntheticConfig,
)
from recipes.gradients.run import _of_loras
from recipes.llm.stand_in_tokenizer import new_tokenizer
from recipes.methods.transferred import Transferred
from recipes.pipeline import Pipeline
from recipes.recommenders.representations import Representations
from recipes.records import DATA
from recipes.study import read_study, run_study

from .language_models import SMALL, saved
from .text_encoders import save
from .tiny_runs import digests, redone

KNOWN = [*titles(4), *(f"stop number {item}" for item in range(ITEMS))]
HERE, THERE = "ring", "synthetic"
LORA: dict[str, Any] = {"method": "lora"}
GATED: dict[str, Any] = {"method": "ilora", "num_experts": 2}
BY_TEXT: dict[str, Any] = {**GATED, "recommender": "text"}
ARMS = [
    *({**arm, "trained_on": place} for arm in (LORA, BY_TEXT) for place in (HERE, THERE)),
    {**GATED, "trained_on": THERE},
    LORA,
    BY_TEXT,
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """A language model and a text encoder, both random."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {**SMALL, "num_key_value_heads": 2}
    llm = saved(folder / "llm", "llama", new_tokenizer(KNOWN, 400), **sizes)
    return llm, save(folder / "encoder", titles=KNOWN)


def experiment(
    models: tuple[Path, Path], out: Path, arms: list[dict[str, Any]], dataset: str = HERE
) -> Experiment:
    llm, encoder = models
    return Experiment(
        out=str(out),
        arms=arms,
        prepare=PrepareConfig(
            dataset=dataset,
            protocol="chronological",
            num_candidates=5,
            synthetic=SyntheticConfig(num_users=40),
        ),
        recommender=RecommenderConfig(hidden_size=8, max_epochs=1, encoder=str(encoder)),
        adapt=AdaptConfig(
            llm=str(llm),
            prompt_history=2,
            max_steps=2,
            batch_size=4,
            rank=4,
            logging_steps=1,
            target_modules=["q_proj", "v_proj"],
        ),
        evaluate=EvaluateConfig(
            rows="last", max_users=8, ks=[1], bootstrap_samples=100, max_new_tokens=None
        ),
    )


@pytest.fixture(scope="module")
def done(models, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline.of(experiment(models, tmp_path_factory.mktemp("here"), ARMS))
    pipeline.run_all()
    return pipeline


def predictions(done: Pipeline) -> dict[str, Any]:
    table = read_table(done.run.folder / "predictions.parquet")
    return {
        str(name): own.drop(columns="method").reset_index(drop=True)
        for name, own in table.groupby("method")
    }


def test_every_arm_answers_the_same_rows_and_candidates(done):
    found = predictions(done)
    rows = {name: (own["row"].tolist(), list(own)) for name, own in found.items()}
    names = {f"lora-transferred,trained_on={place}" for place in (HERE, THERE)}
    assert names < rows.keys() and len({str(one) for one in rows.values()}) == 1
    stages = {path.parent.name for path in done.run.folder.glob("trained-on/*/*/*/record.json")}
    assert {"lora-seed0", "ilora,num_experts=2-seed0", "sasrec", "text"} == {
        name for name in stages if "recommender=text" not in name
    }
    assert not list(done.run.folder.glob("trained-on/*/evaluate"))


def test_an_adapter_that_was_trained_on_the_evaluated_data_is_the_plain_arm(done):
    found = predictions(done)
    for arm in ("lora", "ilora"):
        rest = "" if arm == "lora" else ",num_experts=2,recommender=text"
        plain = found[f"{arm}{rest}"]
        assert found[f"{arm}-transferred{rest},trained_on={HERE}"].equals(plain)
        assert not found[f"{arm}-transferred{rest},trained_on={THERE}"].equals(plain)


def test_it_is_trained_as_an_arm_of_the_experiment_on_those_data(done, models, tmp_path):
    own = Pipeline.of(experiment(models, tmp_path / "there", [LORA, BY_TEXT, GATED], THERE))
    own.prepare()
    own.recommender()
    own.adapt()
    elsewhere = digests(done.run.folder / "trained-on" / THERE)
    weights = {name: one for name, one in elsewhere.items() if name.endswith(".safetensors")}
    assert sum("adapter_model" in name for name in weights) == 3
    alone = digests(tmp_path / "there")
    assert weights == {name: alone[name] for name in weights}


def transferred(done: Pipeline, name: str) -> tuple[Transferred, Any]:
    (arm,) = (arm for arm in done.arms if arm.name == name)
    assert isinstance(arm.method, Transferred)
    return arm.method, arm


def test_a_text_encoders_vectors_are_standardised_as_in_training_and_a_networks_by_their_own(done):
    method, arm = transferred(
        done, f"ilora-transferred,num_experts=2,recommender=text,trained_on={THERE}"
    )
    adapter = done.run.folder / "trained-on" / THERE / "adapt"
    fitted = read_tensors(
        adapter / "ilora,num_experts=2,recommender=text-seed0" / "normaliser.safetensors"
    )
    raw = Representations.load(done.run.network_folder("text"))
    found = method._vectors(done.run, arm, 0)
    assert found is not None and fitted["user_mean"].abs().max() > 0
    for split in SPLITS:
        known = torch.from_numpy(done.run.data.split(split).history_lengths > 0)
        wanted = (raw.users[split] - fitted["user_mean"]) / fitted["user_std"]
        assert torch.equal(found.users[split][known], wanted[known])
        assert not found.users[split][~known].any()
    assert torch.equal(found.items, (raw.items - fitted["item_mean"]) / fitted["item_std"])
    method, arm = transferred(done, f"ilora-transferred,num_experts=2,trained_on={THERE}")
    naive = method._vectors(done.run, arm, 0)
    assert naive is done.run.vectors("sasrec")


def test_the_report_says_where_each_adapter_was_trained(done):
    results = read_json(done.run.folder / "results.json")
    arms = {arm["name"]: arm for arm in results["arms"]}
    arm = arms[f"lora-transferred,trained_on={THERE}"]
    assert arm["title"] == "LoRA, trained_on synthetic"
    assert arm["meaning"].endswith("; trained on synthetic, and on no other data")
    assert results["trainable_parameters"][arm["name"]] == results["trainable_parameters"]["lora"]
    text = (done.run.folder / "report.md").read_text(encoding="utf-8")
    assert f"prepare of {THERE}" in text and f"recommender text of {THERE}" in text
    assert "`trained_on` ring (" in text and "; `trained_on`" in text.replace("**: `", "; `")
    assert "these data (LoRA; iLoRA" in text


def test_what_is_done_is_not_done_again_and_a_lost_adapter_is(done, models, capsys):
    capsys.readouterr()
    again = Pipeline.of(experiment(models, done.run.folder, ARMS))
    again.run_all()
    assert redone(capsys.readouterr().out) == [] and "llm" not in vars(again.run)
    adapter = done.run.folder / "trained-on" / THERE / "adapt" / "lora-seed0"
    (adapter / "adapter" / "adapter_model.safetensors").unlink()
    Pipeline.of(experiment(models, done.run.folder, ARMS)).run_all()
    assert redone(capsys.readouterr().out) == ["adapt lora seed 0"]


@pytest.mark.long
def test_stages_one_by_one_in_two_jobs_after_a_kill_give_the_same(
    done, models, tmp_path, monkeypatch
):
    asked = experiment(models, tmp_path / "run", ARMS)
    asked = replace(asked, adapt=replace(asked.adapt, save_steps=1))

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recipes.llm.train_adapter._save", killed)
        with pytest.raises(KeyboardInterrupt):
            Pipeline.of(asked).run_all()
    (kept,) = (tmp_path / "run").glob("trained-on/*/adapt/*/.unfinished/*/checkpoints/*")
    assert kept.name == "checkpoint-2"
    for stage in ("prepare", "recommender", "adapt", "evaluate", "report"):
        getattr(Pipeline.of(asked, jobs=2), stage)()
    one, other = (digests(folder) for folder in (done.run.folder, tmp_path / "run"))
    assert {name: digest for name, digest in one.items() if name.endswith(DATA)} == {
        name: digest for name, digest in other.items() if name.endswith(DATA)
    }


def test_one_language_model_is_in_memory_for_all_data(models, tmp_path):
    pipeline = Pipeline.of(experiment(models, tmp_path / "run", ARMS))
    (other, _) = (one.run for one in pipeline.elsewhere)
    assert other.llm is pipeline.run.llm and other.llm_content == pipeline.run.llm_content
    assert pipeline.run.release_llm()
    assert "llm" not in vars(other) and not pipeline.run.release_llm()


def test_a_study_over_datasets_trains_each_adapter_once(models, tmp_path):
    arms = [{**LORA, "trained_on": place, "name": f"{place}-lora"} for place in (HERE, THERE)]
    llm, _ = models
    base = {
        "name": "base",
        "prepare": {
            "protocol": "chronological",
            "num_candidates": 5,
            "synthetic": {"num_users": 40},
        },
        "recommender": {"hidden_size": 8, "max_epochs": 1},
        "adapt": {"llm": str(llm), "prompt_history": 1, "max_steps": 1, "batch_size": 4},
        "evaluate": {"rows": "last", "max_users": 4, "ks": [1], "bootstrap_samples": 100},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    fields = {
        "base": str(tmp_path / "base.yaml"),
        "arms": arms,
        "vary": {"prepare.dataset": [HERE, THERE]},
        "along": "prepare.dataset",
    }
    (tmp_path / "cross.yaml").write_text(yaml.safe_dump(fields))
    study = read_study(str(tmp_path / "cross.yaml"), str(tmp_path / "out"), [])
    results = run_study(study)
    trained = [path.parent.name for path in study.out.glob("stages/adapt/lora-seed0-*/record.json")]
    assert len(trained) == 2 and len(list(study.out.glob("stages/prepare-*"))) == 2
    assert len(list(study.out.glob("stages/evaluate/parts/*-lora-seed0-*"))) == 4
    table = {(row["arm"], row["varied"]["prepare.dataset"]) for row in results["rows"]}
    assert {(f"{one}-lora", other) for one in (HERE, THERE) for other in (HERE, THERE)} <= table
    (cell,) = study.out.glob(f"cells/*{HERE}/report.md")
    assert f"- **Time:** prepare and prepare of {HERE} " in cell.read_text(encoding="utf-8")
    text = (study.out / "study.md").read_text(encoding="utf-8")
    assert f"| | {HERE} | {THERE} |" in text.replace("|  |", "| |")


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            {"method": "sasrec"},
            "method sasrec: trained_on is for adapters of a language model",
        ),
        ({"method": "gate-shuffled"}, "method gate-shuffled: trained_on is for adapters"),
        ({"method": "k-loras"}, "method k-loras: trained_on is for adapters"),
        ({**LORA, "tune": {"rank": [2, 4]}}, "method lora-tuned: trained_on is for adapters"),
        (
            {**LORA, "trained_on": "netflix"},
            "method lora: trained_on: there is no dataset 'netflix'; known are",
        ),
        ({**LORA, "trained_on": None}, "trained_on=None must be a dataset's name, or a block"),
        ({**LORA, "trained_on": {"source": "x"}}, "must be a dataset's name, or a block such as"),
        (
            {**LORA, "trained_on": {"dataset": "ring", "core": 5}},
            "method lora: trained_on has no setting 'core'; it has dataset, protocol, source",
        ),
        (
            {**LORA, "trained_on": {"dataset": "ring", "protocol": 3}},
            "method lora: trained_on.protocol=3 must be a word",
        ),
        (
            {**LORA, "trained_on": {"dataset": "ring", "protocol": "llara"}},
            "trained_on='ring,protocol=llara': prepare.protocol='llara': the dataset ring knows",
        ),
        ({**LORA, "max_stepz": 3}, "method lora has no setting 'max_stepz'"),
    ],
    ids=str,
)
def test_what_cannot_be_transferred_is_refused_before_anything_is_done(
    arm, message, models, tmp_path
):
    with pytest.raises(ValueError) as refused:
        Pipeline.of(experiment(models, tmp_path / "run", [{"trained_on": THERE, **arm}]))
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_stand_in_knows_one_datasets_titles_and_is_refused(models, tmp_path):
    with pytest.raises(ValueError, match="trained_on='ring', but the stand-in is trained on the"):
        Pipeline.of(Experiment(arms=[{**LORA, "trained_on": "ring"}]))


def test_two_data_of_one_name_are_refused_and_a_path_is_no_name(models, tmp_path):
    places = [{"dataset": "movielens", "source": f"{one}/raw"} for one in ("one", "other", "one")]
    arms = [{**LORA, "rank": 2 * rank, "trained_on": one} for rank, one in enumerate(places, 1)]
    pipeline = Pipeline.of(experiment(models, tmp_path, arms[::2]))
    (other,) = pipeline.elsewhere
    assert (
        other.place == "movielens,source=raw" and other.run.experiment.prepare.source == "one/raw"
    )
    names = [arm.name for arm in pipeline.arms if arm.method.is_adapter]
    assert names[0] == "lora-transferred,rank=2,trained_on=movielens,source=raw"
    with pytest.raises(ValueError, match="prepare.source='one/raw' and 'other/raw' would be two"):
        Pipeline.of(experiment(models, tmp_path, arms))


def test_made_up_data_have_no_source_where_the_evaluated_data_have_one(models, tmp_path):
    asked = experiment(models, tmp_path, [{**LORA, "trained_on": "ring"}], "movielens")
    asked = replace(asked, prepare=replace(asked.prepare, source=str(tmp_path / "raw")))
    (other,) = Pipeline.of(asked).elsewhere
    assert other.run.experiment.prepare.source is None


def test_a_recommender_of_the_experiment_is_trained_elsewhere_only_if_it_is_read(models, tmp_path):
    mine = {"method": "sasrec", "name": "mine", "hidden_size": 4}
    reading = {"lora": ["mine"], "tallrec": []}
    for method, read in reading.items():
        arms = [mine, {"method": method, "trained_on": THERE}]
        asked = experiment(models, tmp_path, arms)
        asked = replace(asked, recommender=replace(asked.recommender, name="mine"))
        (other,) = Pipeline.of(asked).elsewhere
        assert list(other.run.networks) == read


def test_vectors_of_one_datasets_users_are_refused(models, tmp_path):
    asked = experiment(models, tmp_path, [{**LORA, "recommender": "file", "trained_on": THERE}])
    (tmp_path / "vectors.parquet").touch()
    names = ("user_vectors", "item_vectors")
    files = dict.fromkeys(names, str(tmp_path / "vectors.parquet"))
    asked = replace(asked, recommender=replace(asked.recommender, **files))
    with pytest.raises(ValueError, match="^trained_on='synthetic': recommender='file' has vectors"):
        Pipeline.of(asked)


def test_an_error_says_which_data_it_concerns(models, tmp_path):
    places = [{"dataset": "movielens", "source": str(tmp_path / "none")}, THERE]
    arms = [{**LORA, "trained_on": place} for place in places]
    pipeline = Pipeline.of(experiment(models, tmp_path / "run", arms))
    with pytest.raises(FileNotFoundError, match="^trained_on='movielens,source=none': .*u.item is"):
        pipeline.prepare()


def test_rows_of_the_training_data_are_not_evaluated_and_windows_here_not_trained_on(
    models, tmp_path
):
    # Histories have 7 items at most here, and 4 to 11 there.
    arms = [{**LORA, "trained_on": THERE, "min_history": 9}]
    asked = experiment(models, tmp_path, arms)
    asked = replace(asked, evaluate=replace(asked.evaluate, min_history=7, max_new_tokens=3))
    pipeline = Pipeline.of(asked)
    pipeline.prepare()
    pipeline._check_rows()
    with pytest.raises(ValueError, match="^evaluate.max_new_tokens=3"):
        pipeline._preflight()
    (other,) = pipeline.elsewhere
    other._preflight()  # no answer is written there


@pytest.mark.parametrize("small", [True, False])
def test_the_shipped_study_has_every_adapter_on_every_dataset(small, monkeypatch):
    monkeypatch.setattr("recipes.pipeline.check_smollm2", lambda: None)  # it need not be installed
    study = read_study("cross-domain", None, [], small=small)
    places = [cell.varied["prepare.dataset"] for cell in study.cells]
    assert places == ["movielens", "lastfm", "steam"][: 2 if small else 3]
    for cell in study.cells:
        pipeline = Pipeline.of(cell.experiment)
        there = [other.run.experiment.prepare.dataset for other in pipeline.elsewhere]
        assert there == places
        names = {arm.name for arm in pipeline.arms}
        assert {"random", "popularity", "unadapted", "sasrec", "text"} < names
        assert {f"{one}-{kind}" for one in places for kind in ("lora", "ilora-text")} < names
        for other in pipeline.elsewhere:
            adapters = {arm.name for arm in other.arms if arm.method.is_adapter}
            assert {"lora", "ilora", "ilora,recommender=text"} <= adapters


def test_gradients_train_nothing_on_other_data(models, tmp_path):
    whole = Pipeline.of(experiment(models, tmp_path, [*ARMS, {"method": "gru4rec"}]))
    assert whole.elsewhere and set(whole.run.networks) == {"sasrec", "text", "gru4rec"}
    found = _of_loras(whole)
    assert [arm.name for arm in found.arms] == ["lora", "ilora,num_experts=2,recommender=text"]
    assert not found.elsewhere and set(found.run.networks) == {"sasrec", "text"}
