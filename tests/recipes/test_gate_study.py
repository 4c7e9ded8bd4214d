"""The study of gates at a tiny size, from arms to page: curves, rivals, sizes, what gates did."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread

from recipes.__main__ import main
from recipes.arms import comparison
from recipes.methods import adapter
from recipes.methods.validating import hit_ratio_on_validation
from recipes.report.adapters import rivals_section
from recipes.study import read_study, run_study

BASE = """
name: tiny
prepare: {dataset: synthetic, protocol: chronological, synthetic: {num_users: 40}}
recommender: {hidden_size: 8, max_epochs: 1, batch_size: 64}
adapt:
  prompt_history: 1
  rank: 4
  num_experts: 2
  batch_size: 4
  save_steps: 2
  logging_steps: 2
  lora_dropout: 0.0
  curriculum: false
  stand_in: {hidden_size: 16, intermediate_size: 16, num_layers: 1, num_heads: 2, max_steps: 2}
evaluate: {bootstrap_samples: 100, max_new_tokens: 2, rows: all, batch_size: 320}
"""
ARMS = [
    {"method": "lora"},
    {"method": "lora-user-slot"},
    {"method": "ilora", "name": "softmax-linear", "gate_form": "softmax", "gate": "linear"},
    {"method": "ilora", "name": "scale-trunk", "gate_form": "scale", "gate": "trunk"},
    {"method": "gate-shuffled", "name": "shuffled", "gate_form": "scale", "gate": "trunk"},
]
STUDY = {
    "name": "gates",
    "seeds": 5,
    "arms": ARMS,
    "adapt": {"max_steps": 50},
    "small": {
        "seeds": 2,
        "adapt": {"max_steps": 4, "validate_at": [1, 3, 4], "validate_rows": 12},
    },
    "rivals": ["lora-user-slot", "lora"],
    "panels": "gate",
    "notes": ["**Nothing** is chosen on test."],
}


def written(folder: Path, **fields) -> Path:
    (folder / "tiny.yaml").write_text(BASE)
    path = folder / "gates.yaml"
    own = {"base": str(folder / "tiny.yaml"), **STUDY, **fields}
    path.write_text(yaml.safe_dump(own, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("gates"))


@pytest.fixture(scope="module")
def done(source) -> Path:
    """The folder of the finished small study."""
    out = source.parent / "out"
    assert main(["study", str(source), "--small", "--out", str(out)]) == 0
    return out


def results_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def found(out: Path) -> dict:
    """What two runs of a study have in common."""
    results = results_of(out)
    for cell in results["cells"]:
        del cell["seconds"], cell["config"]["out"]
    return results


def test_small_replaces_fields_and_names_the_study(source):
    small, whole = (read_study(str(source), None, [], small=small) for small in (True, False))
    assert (small.name, whole.name) == ("gates-small", "gates")
    assert (small.out, whole.out) == (Path("runs/gates-small"), Path("runs/gates"))
    experiments = [study.cells[0].experiment for study in (small, whole)]
    assert [one.seeds for one in experiments] == [2, 5]
    assert [one.adapt.max_steps for one in experiments] == [4, 50]
    assert [one.adapt.validate_at for one in experiments] == [[1, 3, 4], []]
    assert [len(one.arms) for one in experiments] == [5, 5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"small": None}, "gates.yaml has no small form: leave --small out, or write a block"),
        ({"small": 3}, "small=3 must be a block of fields"),
        ({"rivals": ["loRA"]}, "rivals: 'loRA' is no arm; there are random, popularity"),
        ({"rivals": "lora"}, "rivals must be words, not 'lora'"),
        ({"notes": [1]}, r"notes must be words, not \[1\]"),
        ({"panels": ["gate"]}, "panels must be words"),
        ({"small": {"adapt": {"validate_at": [51]}}}, "validate_at names step 51, but the train"),
    ],
    ids=str,
)
def test_a_study_that_cannot_be_read_is_refused(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_study(str(written(tmp_path, **fields)), None, [], small=True)


def test_a_study_without_a_small_form_says_so_in_one_line(capsys):
    assert main(["study", "experts", "--small"]) == 2
    assert "experts.yaml has no small form: leave --small out" in capsys.readouterr().err


@pytest.mark.parametrize("small", [True, False])
def test_the_shipped_study_has_every_form_with_either_gate(small):
    study = read_study("gate", None, [], small=small)
    arms = comparison(study.cells[0].experiment).arms
    forms = ("softmax", "sigmoid", "scale", "shift", "scale_shift", "square")
    pairs = {(form, gate) for form in forms for gate in ("linear", "trunk")}
    gated = [arm for arm in arms if arm.method.name == "ilora"]
    assert {(arm.given["gate_form"], arm.given["gate"]) for arm in gated} == pairs
    assert {arm.name for arm in gated} == {f"{form}-{gate}" for form, gate in pairs}
    others = {arm.name for arm in arms} - {arm.name for arm in gated}
    assert others >= {"unadapted", "sasrec", "lora", "lora-user-slot", "scale-trunk-shuffled"}
    trained = [arm.settings for arm in arms if arm.method.is_adapter]
    for name in ("lora_dropout", "curriculum", "max_steps", "learning_rate", "rank", "lora_alpha"):
        assert len({settings[name] for settings in trained}) == 1
    assert not trained[0]["curriculum"] and trained[0]["lora_dropout"] == 0


def test_results_hold_curves_sizes_and_what_gates_did(done):
    results = results_of(done)
    (cell,) = results["cells"]
    names = [arm.get("name", arm["method"]) for arm in ARMS]
    assert list(cell["curves"]) == names
    for own in cell["curves"].values():
        assert [[point["step"] for point in seed] for seed in own["validation"]] == [[1, 3, 4]] * 2
        assert all(0 <= point["validation"] <= 1 for seed in own["validation"] for point in seed)
        assert [len(seed) for seed in own["loss"]] == [2, 2]
    sizes = {row["arm"]: row["parameters"] for row in results["rows"] if row["parameters"]}
    assert [sizes[name]["gate"] for name in names[:3]] == [0, 0, 8 * 2]
    assert sizes["scale-trunk"] == sizes["shuffled"] and sizes["shuffled"]["gate"] > 100
    assert len({own["adapter"] for own in sizes.values()}) == 1
    assert list(cell["gates"]) == ["softmax-linear"]
    assert not {"user_ids", "rows"} & set(cell["gates"]["softmax-linear"])
    assert {len(row) for row in cell["gates"]["softmax-linear"]["weights"]} == {2}
    assert list(cell["modulations"]) == ["scale-trunk", "shuffled"]
    for seeds in cell["modulations"].values():
        assert [(one["seed"], one["of"]) for one in seeds] == [(0, "scale"), (1, "scale")]
        assert all(one["mean_abs"] > 0 for one in seeds)


def test_the_page_explains_compares_and_counts(done):
    text = (done / "study.md").read_text()
    assert text.startswith("# Study: gates-small\n")
    parts = [line for line in text.splitlines() if line.startswith("##")]
    assert parts == [
        "## How to read it",
        "## Against the rivals",
        "### Minus lora-user-slot",
        "### Minus lora",
        "## Trained parameters",
        "## What the gates did",
        "## The best arm against its strongest rival",
        "## How to reproduce",
    ]
    assert "- **Nothing** is chosen on test.\n" in text
    assert "- **shuffled**: iLoRA, shuffled vectors, gate_form scale, gate trunk\n" in text
    rivals = text.split("### Minus lora\n")[1].split("##")[0]
    lines = [line.split(" | ")[0] for line in rivals.splitlines() if line.startswith("| ")]
    assert lines[2:] == ["| lora-user-slot", "| softmax-linear", "| scale-trunk", "| shuffled"]
    assert "![Curves over training](curves.png)" in text
    assert imread(done / "curves.png").shape[0] > 600
    assert "![Weights of experts](gates.png)" in text and (done / "gates.svg").exists()


def test_measuring_changes_nothing_of_what_is_trained(source, done, tmp_path):
    """The same arms without curves have the same weights, in other folders."""
    fields = {"small": None, "seeds": 1, "adapt": {"max_steps": 4}, "arms": ARMS[2:4]}
    out = shutil.copytree(done, tmp_path / "out")
    run_study(read_study(str(written(tmp_path, **fields, rivals=[])), str(out), []))
    for name in ("softmax-linear", "scale-trunk"):
        own = list(out.glob(f"stages/adapt/{name}-seed0-*/adapter/adapter_model.safetensors"))
        assert len(own) == 2 and own[0].read_bytes() == own[1].read_bytes()


def test_a_study_killed_while_it_measures_resumes_to_the_same(source, done, tmp_path, monkeypatch):
    out, calls = shutil.copytree(done, tmp_path / "out"), []
    for stage in out.glob("stages/adapt/scale-trunk-seed1-*"):
        shutil.rmtree(stage)

    def killed(*arguments):
        measure = hit_ratio_on_validation(*arguments)

        def once(model):
            calls.append(1)
            if len(calls) == 3:  # at the last step; the newest checkpoint is of step 2
                raise KeyboardInterrupt
            return measure(model)

        return once

    command = ["study", str(source), "--small", "--out", str(out)]
    monkeypatch.setattr(adapter, "hit_ratio_on_validation", killed)
    assert main(command) == 130 and len(calls) == 3
    assert main(command) == 0 and len(calls) == 3 + 2  # steps 3 and 4 again
    assert found(out) == found(done)


def test_a_difference_taken_the_other_way_round_changes_its_signs():
    arms = [{"name": name, "is_adapter": True} for name in ("lora", "gate")]
    entry = {
        "method": "gate",
        "baseline": "lora",
        "key": "hit_ratio@1/ranking",
        "value": 0.25,
        "low": 0.125,
        "high": 0.5,
        "given_trainings": [-0.125, 0.5],
        "per_seed": [0.25, None],
    }
    cell = {"varied": {}, "comparisons": [entry], "evaluated": {"headline": 1}}
    cell["metrics"] = [{"seeds": [0, 1]}]
    found = rivals_section({"arms": arms, "cells": [cell], "rivals": ["lora", "gate"]})
    assert "| gate | +0.250 | **[+0.125, +0.500]** | [-0.125, +0.500] | +0.250, – |" in found
    assert "| lora | -0.250 | **[-0.500, -0.125]** | [-0.500, +0.125] | -0.250, – |" in found
