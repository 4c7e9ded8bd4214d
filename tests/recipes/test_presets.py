"""The presets parse, fit every dataset, and have the values of paper and reference."""

from pathlib import Path

import pytest

from recipes.__main__ import main
from recipes.experiment import EvaluateConfig, Experiment, PrepareConfig
from recipes.experiment_files import PRESETS, parse_experiment, shipped
from recipes.pipeline import Pipeline
from recipes.study import read_study

from .tiny_runs import TINY, refused

DATASETS = ("lastfm", "movielens", "steam")
RATES = {
    "paper": (2e-4, 1e-4, 1e-4),
    "reference": (7e-4, 8e-4, 5e-4),
    "reference-2024-08": (1e-4, 1e-4, 1e-4),
    "recommended": (2e-4, 1e-4, 1e-4),
}
USERS = {
    "paper": (None, None, None),
    "reference": (120, 88, 1184),
    "reference-2024-08": (120, 92, 1184),
    "recommended": (None, None, None),
}
"""Users evaluated: the reference's batches of eight, or of four, leave an incomplete last one out
of 122, 95 and 1,186."""
ADAPT = {
    "paper": {"rank": 16, "lora_dropout": 0.1, "mistakes": [], "curriculum": True},
    "reference": {"rank": 8, "mistakes": ["curriculum-restarts"], "curriculum": True},
    "reference-2024-08": {"rank": 16, "mistakes": ["curriculum-reversed", "text-only-test"]},
    "recommended": {"rank": 16, "lora_dropout": 0.0, "mistakes": [], "curriculum": False},
}
ALL = {
    "epochs": 5,
    "max_steps": None,
    "batch_size": 128,
    "learning_rate_floor": 0.01,
    "num_experts": 4,
    "lora_alpha": 32,
    "keep": "best",
    "llm": "meta-llama/Llama-2-7b-hf",
    "precision": "bf16",
    "min_history": 3,
    "redraw_candidates": True,
    "item_slots": True,
}


def of(dataset: str, preset: str, *fields: str) -> Experiment:
    return parse_experiment(dataset, ["--preset", preset, *fields])


def test_these_presets_are_shipped():
    assert set(shipped(PRESETS)) == set(RATES)


@pytest.mark.parametrize("preset", RATES)
@pytest.mark.parametrize("dataset", DATASETS)
def test_a_preset_has_its_values_and_every_arm_takes_them(dataset, preset):
    experiment = of(dataset, preset)
    place, adapt = DATASETS.index(dataset), vars(experiment.adapt)
    assert adapt["learning_rate"] == RATES[preset][place]
    assert experiment.evaluate.max_users == USERS[preset][place]
    wanted = {**ALL, **ADAPT[preset]}
    assert {name: adapt[name] for name in wanted} == wanted
    assert (experiment.name, experiment.out) == (f"{dataset}-{preset}", f"runs/{dataset}-{preset}")
    assert experiment.prepare.dataset == dataset and experiment.prepare.num_candidates == 20
    if preset != "recommended":
        assert experiment.evaluate.rows == "last" and experiment.prepare.protocol == "llara"
    arms = {arm.name: arm for arm in Pipeline.of(experiment).arms}
    gated = [arm for arm in arms.values() if arm.method.name == "ilora"]
    scaling = {"paper": "total", "recommended": None}.get(preset, "expert")
    assert [arm.settings["options"].get("scaling_rank") for arm in gated] == [scaling]
    assert {"lora", "popularity"} <= arms.keys()
    for arm in arms.values():
        if arm.method.is_adapter:
            assert (arm.settings["epochs"], arm.settings["max_steps"]) == (5, None)


@pytest.mark.parametrize("preset", RATES)
def test_a_preset_is_the_same_whatever_it_is_put_over(preset):
    """`movielens-smollm2` has short prompts, few windows, kept states and few users of its own."""
    one, other = of("movielens", preset), of("movielens-smollm2", preset)
    for experiment in (one, other):
        experiment.name = experiment.out = ""
        experiment.adapt.methods = []  # which the arms replace
        experiment.adapt.save_steps, experiment.evaluate.ks = 1, [1]
    assert one == other


def test_the_papers_rows_are_its_arms():
    arms = {arm.method.name for arm in Pipeline.of(of("lastfm", "paper")).arms}
    assert arms >= {"gru4rec", "caser", "sasrec", "zero-shot", "tallrec", "prefixrec", "lora"}


def test_recommended_has_the_rivals_of_the_gate_and_all_rows_in_order_of_time():
    experiment = of("lastfm", "recommended")
    arms = {arm.name for arm in Pipeline.of(experiment).arms}
    assert arms >= {
        "lora",
        "lora-user-slot",
        "ilora,gate_form=scale",
        "gate-shuffled,gate_form=scale",
    }
    assert experiment.prepare.protocol == "chronological" and experiment.evaluate.rows == "all"
    assert of("steam", "recommended").evaluate.rows == "last"


def test_the_command_line_is_above_a_preset_wherever_it_stands():
    fields = ["--adapt.rank", "4", "--out", "there"]
    for line in ([*fields, "--preset=paper"], ["--preset", "paper", *fields]):
        experiment = parse_experiment("lastfm", line)
        assert (experiment.adapt.rank, experiment.out) == (4, "there")
        assert experiment.adapt.epochs == 5


def test_a_preset_of_ones_own_needs_no_block_of_datasets(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "own.yaml").write_text("# mine\nadapt: {rank: 8}\n")
    experiment = parse_experiment(
        str(tmp_path / "tiny.yaml"), ["--preset", str(tmp_path / "own.yaml")]
    )
    assert experiment.adapt.rank == 8 and experiment.name == "tiny-own"


def test_what_a_preset_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("datasets: {lastfm: 3}\n")
    for line, said in (
        (["run", "demo", "--preset", "paper"], "no settings for the dataset 'synthetic'; it has"),
        (
            ["run", "recommenders", "--preset", "recommended"],
            "recommended.yaml, give it a block for 'custom', and name the copy",
        ),
        (
            ["run", "lastfm", "--preset", "paper", "--adapt.max_steps", "9"],
            "max_steps=9 and adapt.epochs=5 both say how long to train: set one of them to null",
        ),
        (
            ["run", "lastfm", "--preset", "papers"],
            "is neither a shipped preset (paper, recommended",
        ),
        (["run", "lastfm", "--preset"], "--preset has no name: choose one of paper,"),
        (
            ["run", "lastfm", "--preset", str(tmp_path / "broken.yaml")],
            "must hold a block of fields for each dataset",
        ),
        (["study", "gate", "--preset", "paper"], "a study has its own: write the preset's fields"),
    ):
        assert main(line) == 2
        assert said in refused(capsys.readouterr().err)


def test_our_own_protocols_evaluate_all_rows_and_the_papers_the_last():
    def rows(protocol: str, **evaluate) -> str | None:
        prepare = PrepareConfig(protocol=protocol)
        return Experiment(prepare=prepare, evaluate=EvaluateConfig(**evaluate)).evaluate.rows

    own = ("chronological", "leave-one-out", "temporal")
    assert [rows(protocol) for protocol in (*own, "llara")] == ["all", "all", "all", "last"]
    assert rows("llara", rows="all") == "all" and rows("temporal", rows="first") == "first"
    for name, protocol in (("lastfm", "temporal"), ("movielens", "chronological")):
        assert parse_experiment(name, []).evaluate.rows == "last"
        assert parse_experiment(name, ["--protocol", protocol]).evaluate.rows == "all"


@pytest.mark.parametrize("name", ["recbole-ml100k", "s3rec-lastfm", "s3rec-lastfm-own"])
def test_published_tables_keep_their_rows(name):
    assert {cell.experiment.evaluate.rows for cell in read_study(name, None, []).cells} == {"last"}


def test_every_preset_says_what_it_cannot_carry():
    for name in RATES:
        text = (Path(PRESETS) / f"{name}.yaml").read_text(encoding="utf-8")
        assert "cannot\n# carry" in text or "cannot carry" in text or name == "recommended"
