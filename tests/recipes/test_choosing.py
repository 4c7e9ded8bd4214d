"""The step of an adapter is chosen on validation, and a killed training chooses the same one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recipes.artifacts import read_json, read_tensors
from recipes.experiment import EvaluateConfig
from recipes.llm.adapter_trainer import AdapterTrainer
from recipes.methods import adapter, validating

from .tiny_runs import Runs, copied, redone, refused

SIX = ("--adapt.max_steps", 6, "--adapt.save_steps", 2, "--adapt.lora_dropout", 0.3)
BEST = (*SIX, "--adapt.keep", "best", "--adapt.validate_at")


@pytest.fixture(autouse=True)
def figures(monkeypatch) -> dict[int, float]:
    """What measurements find after a step; to be filled by the test."""
    found: dict[int, float] = {}

    def scripted(run: Any, plan: Any, vectors: Any) -> Any:
        return lambda model: found[current["step"]]

    current = {"step": 0}
    original = AdapterTrainer.training_step

    def counting(self, *arguments, **keywords):
        current["step"] = self.state.global_step + 1
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(AdapterTrainer, "training_step", counting)
    monkeypatch.setattr(adapter, "hit_ratio_on_validation", scripted)
    return found


@pytest.fixture(scope="module")
def upstream(tmp_path_factory) -> Runs:
    """A run whose stages before `adapt` are done."""
    runs = Runs(tmp_path_factory.mktemp("upstream"))
    assert runs("prepare") == runs("recommender") == 0
    return runs


@pytest.fixture
def runs(upstream, tmp_path) -> Runs:
    return copied(upstream, tmp_path)


def trained(runs: Runs) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[int]]:
    """Weights, `training.json` and the measured steps."""
    folder = runs.folder / "adapt" / "ilora-seed0"
    weights = read_tensors(folder / "adapter" / "adapter_model.safetensors")
    weights |= read_tensors(folder / "projector.safetensors")
    curve = read_json(folder / "validation.json")
    return weights, read_json(folder / "training.json"), [point["step"] for point in curve]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def killed_at(step: int, runs: Runs, *fields: Any) -> None:
    original = AdapterTrainer.training_step

    def failing(self, *arguments, **keywords):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", failing)
        assert runs("adapt", *fields) == 130


def test_the_best_step_is_kept_the_first_of_equals_and_a_kill_changes_nothing(
    upstream, runs, figures, tmp_path
):
    figures |= {1: 0.1, 3: 0.5, 4: 0.5, 5: 0.2, 6: 0.4}
    fields = (*BEST, "[1, 3, 4, 5]")
    killed_at(4, runs, *fields)  # the newest checkpoint, of step 4, holds the weights of step 3
    (checkpoint,) = runs.folder.glob("adapt/ilora-seed0/.unfinished/*/checkpoints/checkpoint-*")
    assert checkpoint.name == "checkpoint-4"
    kept_then = read_tensors(checkpoint / "best.safetensors")
    assert runs("adapt", *fields) == 0
    weights, training, steps = trained(runs)
    assert training == {"planned": 6, "trained": 6, "kept": 3, "validation": 0.5}
    assert steps == [1, 3, 4, 5, 6]
    assert torch.equal(weights["first.weight"], kept_then["projector.first.weight"])
    (tmp_path / "undisturbed").mkdir()
    undisturbed = copied(upstream, tmp_path / "undisturbed")
    assert undisturbed("adapt", *fields) == 0
    assert trained(undisturbed)[1:] == (training, steps) and same(trained(undisturbed)[0], weights)
    # It is what a training with the same schedule has after three steps, and not what it ends with.
    assert undisturbed("adapt", *SIX, "--adapt.validate_at", "[1, 3]") == 0
    last, training, steps = trained(undisturbed)
    assert training == {"planned": 6, "trained": 6, "kept": 6} and steps == [1, 3]
    assert not same(last, weights)


def test_patience_ends_a_training_and_a_kill_afterwards_does_not_go_on(runs, figures, monkeypatch):
    figures |= {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9, 6: 0.9}
    fields = (*BEST, "[1, 2, 3, 4, 5]", "--adapt.patience", 2)
    with monkeypatch.context() as patch:

        def interrupt(*arguments: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr("recipes.llm.train_adapter._save", interrupt)
        assert runs("adapt", *fields) == 130
    figures.clear()  # so nothing more can be measured
    assert runs("adapt", *fields) == 0
    _, training, steps = trained(runs)
    assert training == {"planned": 6, "trained": 4, "kept": 2, "validation": 0.5}
    assert steps == [1, 2, 3, 4]


def test_epochs_count_train_windows_and_a_step_beyond_them_is_refused_once_they_are_known(
    runs, figures, capsys
):
    rows = ("--adapt.train_windows", 10, "--adapt.max_steps", "null", "--adapt.epochs", 2)
    figures |= dict.fromkeys(range(1, 7), 0.5)
    assert runs("adapt", *rows, "--adapt.validate_every", 1) == 0
    _, training, steps = trained(runs)  # three steps of four prompts an epoch
    assert (training["trained"], steps) == (6, [3, 6])
    assert runs("adapt", *rows, "--adapt.validate_at", "[7]") == 2
    assert "names step 7, but the training ends at step 6" in refused(capsys.readouterr().err)


def test_an_interval_that_no_training_reaches_is_refused(runs, capsys):
    assert runs("adapt", "--adapt.validate_every", 100) == 2
    said = refused(capsys.readouterr().err)
    assert "the training of 2 steps ends before adapt.validate_every=100 epochs" in said


def test_another_measure_is_another_choice(runs, figures, capsys):
    """Ranking by the mean of tokens in place of their sum may choose another step."""
    figures |= {1: 0.9, 2: 0.4}
    mean = ("--evaluate.length_normalised", "true")
    for fields, again in (
        (("--adapt.validate_at", "[1]", "--adapt.keep", "best"), ["adapt ilora seed 0"]),
        ((), []),
    ):
        assert runs("adapt", *fields) == 0
        capsys.readouterr()
        assert runs("adapt", *fields, *mean) == 0
        assert redone(capsys.readouterr().out) == again


def test_a_report_says_what_was_chosen(runs, figures):
    figures |= {1: 0.9, 2: 0.4}
    fields = ("--adapt.keep", "best", "--adapt.validate_at", "[1]", "--seeds", 2)
    assert runs("run", *fields) == 0
    results = json.loads((Path(runs.folder) / "results.json").read_text())
    one = {"planned": 2, "trained": 2, "kept": 1, "validation": 0.9}
    assert results["trainings"] == {"ilora": [{"seed": seed, **one} for seed in (0, 1)]}
    assert (
        "the highest HitRatio@1 on 1,000 validation rows" in (runs.folder / "report.md").read_text()
    )


def test_a_row_of_nan_is_a_miss_of_the_measurement_and_no_more(monkeypatch):
    nan = float("nan")
    scores = np.array([[1.0, 0, 0], [nan] * 3, [1, 1, 0], [1, nan, 0], [0, 1, 0]])
    rows = SimpleNamespace(
        split="val", rows=np.arange(5), target_index=np.zeros(5, dtype=int), candidates=None
    )
    adapted = SimpleNamespace(prompt_lengths=lambda split, wanted: None)
    monkeypatch.setattr(validating, "validation_rows", lambda run, settings: rows)
    monkeypatch.setattr(validating, "AdaptedModel", lambda *_, **__: adapted)
    monkeypatch.setattr(validating, "score_candidates", lambda *_, **__: scores)
    settings = SimpleNamespace(prompt_history=1, item_slots=True, list_candidates=True)
    plan = SimpleNamespace(settings=settings, user_slot=False, hybrid_at_test=True, label="x")
    run = SimpleNamespace(prompts=None, experiment=SimpleNamespace(evaluate=EvaluateConfig()))
    measure = validating.hit_ratio_on_validation(run, plan, None)
    assert measure(None) == pytest.approx((1 + 0 + 1 / 2 + 0 + 0) / 5)
