"""A run loads its tables and its language model once, and notices what has changed."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recipes.artifacts import read_json, read_table, read_tensors
from recipes.data.tables import PreparedData
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
    SyntheticConfig,
)
from recipes.llm import language_model
from recipes.methods import adapter
from recipes.pipeline import Pipeline
from recipes.recommenders.vectors import Vectors
from recipes.scoring.rows import evaluated_rows

pytestmark = pytest.mark.plots

ARMS = [
    {"method": "lora"},
    {"method": "ilora"},
    {"method": "ilora", "gate_input": "prompt", "name": "prompt"},
    {"method": "ilora", "gate_input": "token", "gate_scope": "per_module", "name": "token"},
    {"method": "ilora", "gate_scope": "per_module", "name": "each"},
    {"method": "ilora", "gate": "trunk", "gate_form": "scale", "name": "scale"},
]
ADAPT = AdaptConfig(
    prompt_history=1,
    max_steps=2,
    batch_size=4,
    logging_steps=1,
    target_modules=["q_proj", "v_proj"],
    stand_in=StandInConfig(
        hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, max_steps=2, batch_size=4
    ),
)


def experiment(folder: Path, **changes) -> Experiment:
    return Experiment(
        **{
            "out": str(folder),
            "arms": ARMS,
            "prepare": PrepareConfig(
                protocol="chronological", synthetic=SyntheticConfig(num_users=40)
            ),
            "recommender": RecommenderConfig(hidden_size=8, max_epochs=1),
            "adapt": ADAPT,
            "evaluate": EvaluateConfig(rows="last", bootstrap_samples=100, max_new_tokens=2),
            **changes,
        }
    )


def counted(patch: pytest.MonkeyPatch) -> Counter:
    """How often tables, vectors and language models are loaded from here on."""
    counts: Counter = Counter()

    def counting(name, original):
        def call(*given):
            counts[name] += 1
            return original(*given)

        return call

    load = language_model.load_language_model
    patch.setattr(language_model, "load_language_model", counting("llm", load))
    patch.setattr(PreparedData, "load", counting("tables", PreparedData.load))
    patch.setattr(Vectors, "load", counting("vectors", Vectors.load))
    return counts


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Pipeline, Counter]:
    """A finished run of six arms, and how often it loaded what they share."""
    made = Pipeline.of(experiment(tmp_path_factory.mktemp("run")))
    with pytest.MonkeyPatch.context() as patch:
        counts = counted(patch)
        made.run_all()
    return made, counts


@pytest.fixture
def again(finished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished[0].run.folder, tmp_path / "again")


def test_tables_vectors_and_language_model_are_loaded_once_for_all_arms(finished):
    assert finished[1] == {"tables": 1, "vectors": 1, "llm": 1}


def test_a_finished_run_loads_no_language_model(again, monkeypatch, capsys):
    counts = counted(monkeypatch)
    Pipeline.of(experiment(again)).run_all()
    assert counts["llm"] == counts["vectors"] == 0
    told = capsys.readouterr().out
    assert "] -> " not in told and told.count("already done") == 3 + 6 + 8 + 1


def test_the_folders_of_a_run_are_named_by_stage_arm_and_seed(finished):
    folder = finished[0].run.folder
    adapters = [f"adapt/{name}-seed0" for name in ("lora", "ilora", "prompt", "token", "each")]
    stages = ["prepare", "recommenders/sasrec", "adapt/stand-in", *adapters, "evaluate"]
    assert all((folder / name / "record.json").exists() for name in stages)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"results.json", "report.md", "summary.txt", "plots", "predictions.parquet"}


# ------------------------------------------------------------------ gates


def test_gates_are_recorded_where_a_row_has_weights_of_experts(finished):
    folder = finished[0].run.folder
    gates = read_json(folder / "evaluate" / "gates.json")
    assert list(gates) == ["ilora", "prompt", "each"]
    for gate in gates.values():
        assert len(gate["mean_weights"]) == 4
        assert sum(gate["mean_weights"]) == pytest.approx(1, abs=1e-5)
    plots = {path.name for path in (folder / "plots").iterdir()}
    drawn = ("loss", "hit_ratio", *(f"gates-{name}" for name in gates))
    assert plots == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}


@pytest.mark.parametrize("name", ["prompt", "token", "each"])
def test_a_gate_that_reads_something_else_is_trained_and_saved(finished, name):
    folder = finished[0].run.folder / "adapt" / f"{name}-seed0"
    saved = read_tensors(folder / "adapter" / "adapter_model.safetensors")
    gates = {key: tensor for key, tensor in saved.items() if "ilora_gate" in key}
    assert len(gates) == (1 if name == "prompt" else 2)
    width = 8 if name == "each" else 16
    assert {tuple(tensor.shape) for tensor in gates.values()} == {(4, width)}
    trained = read_json(folder / "parameters.json")
    assert trained["gate"] == len(gates) * 4 * width


def test_predictions_of_every_arm_cover_the_same_rows(finished):
    run = finished[0].run
    table = read_table(run.folder / "predictions.parquet")
    rows = evaluated_rows(run.data, run.experiment.evaluate).rows.tolist()
    found = {name: part["row"].tolist() for name, part in table.groupby("method")}
    assert found.keys() == {
        "popularity",
        "sasrec",
        *(arm.get("name", arm["method"]) for arm in ARMS),
    }
    assert all(part == rows for part in found.values())


# ------------------------------------------------------------------ what has changed is noticed


def only_lora(folder: Path, **changes) -> Pipeline:
    return Pipeline.of(experiment(folder, arms=[{"method": "lora"}], **changes))


def test_other_content_in_the_language_models_folder_is_noticed(again, tmp_path, monkeypatch):
    llm = shutil.copytree(again / "adapt" / "stand-in", tmp_path / "llm")
    own = {"adapt": replace(ADAPT, llm=str(llm))}
    only_lora(again, **own).adapt()
    trained = []
    train = adapter.train_adapter

    def spying(plan, *given, **named):
        trained.append(plan.label)
        return train(plan, *given, **named)

    monkeypatch.setattr(adapter, "train_adapter", spying)
    only_lora(again, **own).adapt()
    assert trained == []
    weights = read_tensors(llm / "model.safetensors")
    name = "model.norm.weight"
    changed = weights | {name: weights[name] + torch.tensor(0.5)}
    (llm / "model.safetensors").unlink()
    save_file(changed, llm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"another language model: run .*recipes adapt` again"):
        only_lora(again, **own).evaluate()
    only_lora(again, **own).adapt()
    assert trained == ["lora seed 0"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"adapt": replace(ADAPT, max_steps=3)},
            r"made with max_steps=2 \(now 3\): run .*recipes adapt`",
        ),
        (
            {"adapt": replace(ADAPT, rank=8, lora_alpha=4)},
            r"lora_alpha=32 \(now 4\), rank=16 \(now 8\): run",
        ),
        ({"adapt": replace(ADAPT, precision="bf16")}, r"precision=fp32 \(now bf16\): run"),
        (
            {"recommender": RecommenderConfig(hidden_size=4, max_epochs=1)},
            r"hidden_size=8 \(now 4\): run .*recipes recommender`",
        ),
        (
            {
                "prepare": PrepareConfig(
                    protocol="chronological",
                    candidate_seed=7,
                    synthetic=SyntheticConfig(num_users=40),
                )
            },
            r"candidate_seed=1234 \(now 7\): run .*recipes prepare`",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_made_with_other_settings_is_refused_by_name(finished, changes, words):
    folder = finished[0].run.folder
    for command in ("evaluate", "report"):
        made = only_lora(folder, **changes)
        with pytest.raises(ValueError, match=words):
            getattr(made, command)()


def test_a_report_refuses_an_evaluation_of_other_rows_or_arms(finished):
    folder = finished[0].run.folder
    with pytest.raises(ValueError, match="made with arms=.*run `python -m recipes evaluate` again"):
        only_lora(folder).report()
    evaluated = replace(finished[0].run.experiment.evaluate, confidence=0.5)
    with pytest.raises(ValueError, match=r"confidence=0.95 \(now 0.5\): run"):
        Pipeline.of(experiment(folder, evaluate=evaluated)).report()


def test_settings_that_no_adapter_reads_train_nothing_again(again, capsys):
    other = replace(ADAPT, save_steps=1, num_experts=2)
    Pipeline.of(experiment(again, arms=ARMS[:1], adapt=other)).adapt()
    assert "[adapt lora seed 0] already done" in capsys.readouterr().out


def test_arms_read_the_vectors_of_the_recommender_that_they_name(again):
    wide = {"method": "sasrec", "name": "wide", "hidden_size": 12}
    arms = [
        wide,
        {"method": "ilora", "recommender": "wide", "name": "of wide"},
        {"method": "ilora"},
    ]
    made = Pipeline.of(experiment(again, arms=arms))
    results = made.run_all()
    assert results["trainable_parameters"]["of_wide"]["gate"] == 4 * 12
    assert results["trainable_parameters"]["ilora"]["gate"] == 4 * 8
    names = [arm["name"] for arm in results["arms"]]
    assert names == ["random", "popularity", "wide", "sasrec", "of_wide", "ilora"]
    assert {path.name for path in (again / "recommenders").iterdir()} == {"sasrec", "wide"}
