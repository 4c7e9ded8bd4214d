"""docs/gpu_hours.md is what its program writes, from FLOPs that were counted by hand."""

import importlib.util
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from recipes.experiment_files import parse_experiment
from recipes.methods import METHODS
from recipes.pipeline import Pipeline

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("gpu_hours", DOCS / "gpu_hours.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_program_writes(program):
    assert (DOCS / "gpu_hours.md").read_text(encoding="utf-8") == program.page()


def test_weights_are_those_of_llama_2_7b(program):
    """6,738,415,616 parameters less embeddings and head (131,072,000 each) and 266,240 of norms."""
    assert program.WEIGHTS == 6_738_415_616 - 2 * 131_072_000 - 266_240
    assert program.adapter_weights(16) == 39_976_960


def test_flops_are_those_of_a_small_case_by_hand(program, monkeypatch):
    """Weights 10, 2 layers of width 3, a vocabulary of 5; a prompt of 6 and an answer of 2."""
    for name, value in {"WEIGHTS": 10, "LAYERS": 2, "WIDTH": 3, "VOCABULARY": 5}.items():
        monkeypatch.setattr(program, name, value)
    monkeypatch.setattr(program, "adapter_weights", lambda rank: 7)
    data = program.Data("small", windows=2, rows=3, prompt=6, slots=1, answer=2)
    # 8 tokens: 2 * 10 * 8 + 4 * 2 * 3 * 4 * 8 of attention + 2 * 5 * 3 * 2 of the head
    assert program.forward(8, 4, 2) == 160 + 768 + 60
    window = 2 * (160 + 768 + 60) + 768 + 6 * 7 * 8
    assert program.training(data, slots=True) == program.EPOCHS * 2 * window
    titles = 20 * 2
    prompt = 120 + 24 * 3 * 6 + 30
    behind = 20 * titles + 24 * 6 * titles + 30 * titles
    assert program.ranking(data, 3, slots=True) == 3 * (prompt + behind)


def test_only_rows_with_a_language_model_have_hours_and_text_prompts_have_fewer(program):
    hours = {
        name: program.method_hours(METHODS[name], program.TOKENS["lastfm"])
        for name in ("sasrec", "zero-shot", "tallrec", "lora", "ilora")
    }
    assert hours["sasrec"] is None
    assert 0 < hours["zero-shot"] < hours["tallrec"] < hours["lora"] == hours["ilora"]


@pytest.mark.parametrize("dataset", ["lastfm", "movielens", "steam"])
def test_every_command_of_the_page_is_accepted_as_it_stands(program, dataset):
    page = (DOCS / "gpu_hours.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\| `([\w-]+)` \| `('.+?')` \|", page, re.M)
    assert [name for name, _ in commands] == list(program.rows())
    assert {"chat", "morec", "caser", "gate-token"} <= set(program.rows())
    tuned = re.findall(r"^  `(\[.+\])`", page, re.M)
    assert len(tuned) == 1
    experiment = parse_experiment(dataset, ["--source", "FOLDER", "--preset", "paper"])
    for quoted in [*(arms for _, arms in commands), f"'{tuned[0]}'"]:
        (word,) = shlex.split(quoted)
        arms = yaml.safe_load(word)
        assert Pipeline.of(replace(experiment, arms=arms)).arms


def test_a_row_of_the_preset_is_the_presets_own_arm(program):
    arms = program.preset_arms()
    assert len(arms) == 8
    for arm in arms:
        assert yaml.safe_load(program.arms_of(METHODS[arm["method"]])) == [arm]
