"""The systems that the paper compares, and their rivals: one tiny run of them all."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.artifacts import read_json, read_table, read_tensors, write_tensors
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
    SyntheticConfig,
)
from recipes.llm.adapter_trainer import AdapterTrainer
from recipes.methods import METHODS
from recipes.methods.clustered import CENTROIDS
from recipes.methods.clusters import centroids
from recipes.pipeline import Pipeline

ARMS: list[dict[str, Any]] = [
    {"method": "tallrec"},
    {"method": "prefixrec", "num_virtual_tokens": 3, "name": "prefixrec"},
    {"method": "lora"},
    {"method": "deep-prompt"},
    {"method": "k-loras"},
    {"method": "k-loras", "assignment": "mixed", "name": "mixed"},
    {"method": "layer-bias"},
    {"method": "reclora"},
    {"method": "gate-token"},
    {"method": "gate-prompt"},
    {"method": "ilora"},
    {"method": "ilora-user-slot"},
    {"method": "gate-hard"},
]
NAMES = [arm.get("name", arm["method"]) for arm in ARMS]
ADAPT: dict[str, Any] = {
    "prompt_history": 1,
    "max_steps": 2,
    "batch_size": 4,
    "rank": 4,
    "save_steps": 1,
    "logging_steps": 1,
    "target_modules": ["q_proj", "v_proj"],
    "stand_in": StandInConfig(
        hidden_size=16, intermediate_size=16, num_layers=2, num_heads=2, max_steps=2, batch_size=4
    ),
}


def made(folder: Path, arms: list[dict[str, Any]], **adapt: Any) -> Pipeline:
    return Pipeline.of(
        Experiment(
            out=str(folder),
            arms=arms,
            prepare=PrepareConfig(
                protocol="chronological", num_candidates=5, synthetic=SyntheticConfig(num_users=40)
            ),
            recommender=RecommenderConfig(hidden_size=8, max_epochs=1),
            adapt=AdaptConfig(**{**ADAPT, **adapt}),
            evaluate=EvaluateConfig(rows="last", ks=[1], bootstrap_samples=100, max_new_tokens=2),
        )
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Pipeline:
    found = made(tmp_path_factory.mktemp("systems"), ARMS)
    found.run_all()
    return found


def counts(finished: Pipeline, name: str) -> Mapping[str, int]:
    """Numbers of trained parameters by group, as the report has them."""
    return read_json(finished.run.folder / "results.json")["trainable_parameters"][name]


def folder_of(finished: Pipeline, name: str) -> Path:
    return finished.run.folder / "adapt" / f"{name}-seed0"


def test_every_system_is_evaluated_on_the_same_rows_and_reported(finished) -> None:
    table = read_table(finished.run.folder / "predictions.parquet")
    rows = {name: part["row"].tolist() for name, part in table.groupby("method")}
    assert rows.keys() >= set(NAMES)
    assert all(part == rows["lora"] for part in rows.values())
    page = (finished.run.folder / "report.md").read_text(encoding="utf-8")
    for arm in finished.arms:
        assert arm.title in page


KEPT = {"last_layers": 1, "frozen_prefix": True, "redraw_candidates": False}


def test_the_beams_of_every_system_are_its_ranking(finished, tmp_path) -> None:
    """Slots, prefixes and what routes go with each beam, also where they enter at a layer."""
    folder = shutil.copytree(finished.run.folder, tmp_path / "run")
    kept = [
        {"method": one, **KEPT, "name": f"{one}-kept"}
        for one in ("lora-user-slot", "deep-prompt", "gate-token", "ilora")
    ]
    experiment = made(folder, [*ARMS, *kept]).run.experiment
    options = {"decoding": "candidates", "num_beams": 5, "max_new_tokens": None}
    beams = Pipeline.of(replace(experiment, evaluate=replace(experiment.evaluate, **options)))
    beams.adapt()
    beams.evaluate()
    table = read_table(folder / "evaluate" / "predictions.parquet")
    candidates = beams.run.data.split("test").candidates
    own = table[table["method"].isin([*NAMES, *(arm["name"] for arm in kept)])]
    assert own["method"].nunique() == len(ARMS) + len(kept)
    for name, row, scores, items in zip(
        own["method"], own["row"], own["scores"], own["beam_items"], strict=True
    ):
        assert sorted(items) == sorted(candidates[row]), name
        score = dict(zip(candidates[row].tolist(), scores, strict=True))
        ordered = np.array([score[item] for item in items])
        assert (np.diff(ordered) < 1e-4).all(), name
    assert own["valid"].all() and own["invalid"].isna().all()


def test_a_text_system_has_neither_vectors_nor_a_projector(finished) -> None:
    lora = counts(finished, "lora")
    assert counts(finished, "tallrec") == {**lora, "projector": 0, "total": lora["adapter"]}
    names = {path.name for path in folder_of(finished, "tallrec").iterdir()}
    assert names == {"adapter", "loss.json", "parameters.json", "record.json", "training.json"}
    record = read_json(folder_of(finished, "tallrec") / "record.json")
    assert "recommender" not in record["inputs"] and "item_slots" not in record["config"]


def test_parameters_are_counted_by_what_they_belong_to(finished) -> None:
    lora, width, modules = counts(finished, "lora"), 8, 4
    gates = {
        "lora": 0,
        "k-loras": 0,
        "mixed": 0,
        "layer-bias": 4 * width,
        "reclora": 4 * width + width * width + width,
        "gate-token": modules * 4 * 16,
        "gate-prompt": 4 * 16,
        "ilora": 4 * width,
        "ilora-user-slot": 4 * width,
        "gate-hard": 0,
    }
    for name, gate in gates.items():
        assert counts(finished, name) == {**lora, "gate": gate, "total": lora["total"] + gate}
    keys = 3 * 2 * 2 * 16
    nothing = {"gate": 0, "projector": 0}
    assert counts(finished, "prefixrec") == {"adapter": keys, **nothing, "total": keys}
    network = 8 * 8 + 8 + (8 + 1) * 2 * 2 * 16
    deep = {"projector": lora["projector"] + network, "total": lora["total"] + network}
    assert counts(finished, "deep-prompt") == {**lora, **deep}


def config_of(finished: Pipeline, name: str) -> Mapping[str, Any]:
    return read_json(folder_of(finished, name) / "adapter" / "adapter_config.json")


def weights(finished: Pipeline, name: str) -> Mapping[str, Any]:
    return read_tensors(folder_of(finished, name) / "adapter" / "adapter_model.safetensors")


def test_separate_loras_have_the_weights_of_clusters_and_no_gate_is_trained(finished) -> None:
    gates = read_json(finished.run.folder / "evaluate" / "gates.json")
    assert gates["k-loras"]["mean_entropy"] == gates["gate-hard"]["mean_entropy"] == 0
    hard = config_of(finished, "gate-hard")
    assert (hard["gate"], hard["scaling_rank"]) == ("hard", "total")
    assert 0 < gates["mixed"]["mean_entropy"] < gates["mixed"]["uniform_entropy"]
    for name, scaling in (("k-loras", "total"), ("mixed", "expert")):
        (gate,) = [v for key, v in weights(finished, name).items() if "ilora_gate" in key]
        assert torch.equal(gate, torch.eye(4))
        config = config_of(finished, name)
        assert (config["scaling_rank"], config["routing_dim"]) == (scaling, 4)


@pytest.mark.parametrize("name", ["k-loras", "gate-hard"])
def test_clusters_are_those_that_the_adapter_was_trained_with(finished, name, tmp_path) -> None:
    (arm,) = (arm for arm in finished.arms if arm.name == name)
    folder, known = folder_of(finished, name), finished.run.vectors("sasrec").users["train"]
    found = read_tensors(folder / CENTROIDS)["centroids"]
    assert torch.equal(found, centroids(known, 4))
    write_tensors(tmp_path / CENTROIDS, {"centroids": found.flip(0).contiguous()})
    own, other = (
        arm.method.vectors(finished.run, arm, 0, place).users["test"]
        for place in (folder, tmp_path)
    )
    assert torch.equal(other, own.flip(1) if name == "k-loras" else 3 - own)


def test_a_text_system_alone_trains_no_recommender(tmp_path) -> None:
    assert not made(tmp_path, [{"method": "tallrec"}]).run.networks


KEPT = {"last_layers": 1, "frozen_prefix": True, "redraw_candidates": False}
REFUSED = [
    ({"method": "tallrec", "item_slots": True}, "method tallrec has no setting 'item_slots'"),
    ({"method": "tallrec", "recommender": "sasrec"}, "tallrec has no setting 'recommender'"),
    ({"method": "tallrec", "curriculum": False}, "method tallrec has no setting 'curriculum'"),
    ({"method": "prefixrec", "rank": 8}, "method prefixrec has no setting 'rank'"),
    ({"method": "prefixrec", "target_modules": ["q_proj"]}, "no setting 'target_modules'"),
    ({"method": "prefixrec", "prefix_projection": True}, "no setting 'prefix_projection'"),
    ({"method": "prefixrec", "num_virtual_tokens": 0}, "num_virtual_tokens=0 must be a positive"),
    ({"method": "prefixrec", "init_weights": "one"}, "init_weights='one' must be zero, or left"),
    ({"method": "deep-prompt", "prefix_tokens": 0}, "prefix_tokens=0"),
    ({"method": "deep-prompt", "layers_to_transform": [0]}, "no setting 'layers_to_transform'"),
    ({"method": "layer-bias", "num_experts": 2}, "layer-bias has no setting 'num_experts'"),
    ({"method": "layer-bias", "gate_form": "scale"}, "layer-bias has no setting 'gate_form'"),
    ({"method": "layer-bias", "top_k": 1}, "top_k=1"),
    ({"method": "gate-prompt", "gate_input": "token"}, "gate-prompt has no setting 'gate_input'"),
    ({"method": "gate-token", "gate_scope": "shared"}, "gate-token has no setting 'gate_scope'"),
    ({"method": "gate-token", "gate": "trunk"}, "gate='trunk' is one network for all layers"),
    ({"method": "reclora", "gate": "linear"}, "method reclora has no setting 'gate'"),
    ({"method": "k-loras", "temperature": 2}, "method k-loras has no setting 'temperature'"),
    ({"method": "k-loras", "assignment": "both"}, "method k-loras: .*assignment"),
    (
        {"method": "k-loras", "gate_learning_rate_scale": 1.0},
        "k-loras has no setting 'gate_learning_rate_scale'",
    ),
    ({"method": "gate-hard", "gate": "linear"}, "method gate-hard has no setting 'gate'"),
    ({"method": "gate-hard", "top_k": 1}, "method gate-hard has no setting 'top_k'"),
    ({"method": "gate-prompt", **KEPT}, "gate_input='prompt' reads the token embeddings that"),
    ({"method": "ilora-user-slot", "r": 0}, "method ilora-user-slot: r=0 must be a positive int"),
]


@pytest.mark.parametrize(("arm", "said"), REFUSED, ids=[said[:48] for _, said in REFUSED])
def test_what_a_system_would_not_read_is_refused(arm, said) -> None:
    with pytest.raises(ValueError, match=said):
        METHODS[arm["method"]].configure(Experiment(), {k: arm[k] for k in arm if k != "method"})


def test_systems_adapt_the_last_layers_on_kept_states(finished, tmp_path) -> None:
    folder = shutil.copytree(finished.run.folder, tmp_path / "kept")
    names = ("tallrec", "prefixrec", "deep-prompt", "k-loras", "ilora-user-slot", "gate-hard")
    arms = [arm for arm in ARMS if arm.get("name", arm["method"]) in names]
    found = made(folder, arms, train_windows=9, item_slots=False, **KEPT)
    found.run_all()
    for name in (arm.get("name", arm["method"]) for arm in arms):
        config = config_of(found, name)
        if name == "prefixrec":
            assert config["num_layers"] == 1
        else:
            assert config["layers_to_transform"] == [1]
            assert all(".layers.1." in key or "gate" in key for key in weights(found, name))
    network = 8 * 8 + 8 + (8 + 1) * 2 * 16
    assert counts(found, "deep-prompt")["projector"] == network


def interrupted(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete an arm's adapter, and train it anew as far as the first checkpoint."""
    shutil.rmtree(folder / "adapt" / f"{name}-seed0")
    original = AdapterTrainer.training_step

    def failing(self, *args, **kwargs):
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AdapterTrainer, "training_step", failing)
        made(folder, ARMS).adapt()


def test_systems_resume_to_the_same_weights(finished, tmp_path, monkeypatch, capsys) -> None:
    folder = shutil.copytree(finished.run.folder, tmp_path / "again")
    for name in ("prefixrec", "deep-prompt", "k-loras", "gate-hard"):
        interrupted(folder, name, monkeypatch)
        capsys.readouterr()
        found = made(folder, ARMS)
        found.adapt()
        assert f"[{name} seed 0] resuming from checkpoint-1" in capsys.readouterr().out
        for path in folder_of(finished, name).rglob("*.safetensors"):
            again = read_tensors(
                folder_of(found, name) / path.relative_to(folder_of(finished, name))
            )
            for key, tensor in read_tensors(path).items():
                assert torch.equal(again[key], tensor), key
