"""The command line in real processes: a whole small run, its resumption, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recipes.__main__ import main
from recipes.arms import comparison
from recipes.experiment_files import EXPERIMENTS, STUDIES, parse_experiment, shipped, yaml_file
from recipes.methods import METHODS
from recipes.pipeline import Pipeline
from recipes.study import read_study

pytestmark = pytest.mark.plots

TINY = """
name: tiny
prepare: {dataset: synthetic, protocol: chronological, synthetic: {num_users: 80}}
recommender: {hidden_size: 16, max_epochs: 2, batch_size: 64}
adapt:
  methods: [lora, ilora]
  prompt_history: 1
  max_steps: 12
  batch_size: 4
  save_steps: 4
  logging_steps: 2
  stand_in: {hidden_size: 16, intermediate_size: 16, num_layers: 1, num_heads: 2, max_steps: 4}
evaluate: {rows: last, bootstrap_samples: 100, max_new_tokens: 4}
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "recipes", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def figures(folder: Path) -> object:
    return json.loads((folder / "evaluate" / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_run_resumes_to_the_result_of_an_undisturbed_one(tiny, tmp_path, capsys) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["run", str(tiny), "--out", str(whole)]) == 0
    process = subprocess.Popen(
        command("run", str(tiny), "--out", str(killed)),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(killed.glob("adapt/lora-seed0/.unfinished/*/checkpoints/*/trainer_state.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "adapt" / "lora-seed0" / "record.json").exists()
    capsys.readouterr()
    assert main(["run", str(tiny), "--out", str(killed)]) == 0
    assert "[prepare] already done" in capsys.readouterr().out
    assert figures(killed) == figures(whole)

    assert main(["run", str(tiny), "--out", str(whole)]) == 0
    again = capsys.readouterr().out
    adapters = ("adapt lora seed 0", "adapt ilora seed 0")
    stages = ("prepare", "recommender sasrec", "stand-in", *adapters, "evaluate")
    assert all(f"[{stage}] already done" in again for stage in stages)
    assert "] -> " not in again
    names = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert names >= {
        "prepare/interactions.parquet",
        "prepare/items.parquet",
        "prepare/examples.parquet",
        "prepare/candidates.parquet",
        "prepare/manifest.json",
        "adapt/ilora-seed0/adapter/adapter_model.safetensors",
        "predictions.parquet",
        "results.json",
        "report.md",
        "report.html",
        "plots/loss.png",
        "plots/gates-ilora.png",
        "plots/hit_ratio.png",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "nothing"],
            "EXPERIMENT='nothing' is neither a shipped experiment (demo, lastfm, movi",
        ),
        (["run", "demo", "--adapt.max_steps", "many"], "adapt.max_steps"),
        (["run", "demo", "--adapt.max_stepz", "1"], "adapt.max_stepz"),
        (["run", "demo", "--prepare.dataset", "netflix"], "there is no dataset 'netflix'"),
        (["evaluate", "demo", "--out", "{empty}"], "run `python -m recipes"),
        (
            ["prepare", "lastfm", "--source", "{empty}", "--out", "{empty}/o"],
            "artists.dat is missing",
        ),
        (
            ["run", "demo", "--evaluate.bootstrap_samples", "5", "--out", "{empty}/o"],
            "at least 100",
        ),
        (["run", "demo", "--evaluate.ks", "[30]", "--out", "{empty}/o"], "ks holds [30]"),
        (["run", "demo", "--adapt.num_experts", "3", "--out", "{empty}/o"], "num_experts"),
        (["run", "demo", "--arms", "[{{method: x}}]", "--out", "{empty}/o"], "there is no method"),
        (["run", "demo", "--out", ""], "out='' is empty: name a folder"),
        (["study", "nothing"], "STUDY='nothing' is neither a shipped study (candidates"),
        (["list", "--yaml"], "usage: python -m recipes COMMAND"),
        (["dance", "demo"], "usage: python -m recipes COMMAND"),
        ([], "usage: python -m recipes COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_message_and_status_2(arguments, message, tmp_path, capsys) -> None:
    assert main([argument.format(empty=tmp_path) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_mistake_is_the_exit_status_of_the_process() -> None:
    done = run("run", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: EXPERIMENT='nothing'") and done.stderr.count("\n") == 1


def test_a_terminal_that_cannot_show_a_character_stops_nothing() -> None:
    line = ["run", "Müller → x"]
    done = subprocess.run(
        command(*line), capture_output=True, env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 2
    assert b"error: EXPERIMENT='M?ller ? x' is neither" in done.stderr


def test_a_file_in_the_place_of_the_runs_folder_is_one_message(tmp_path, capsys) -> None:
    place = tmp_path / "file"
    place.write_text("")
    assert main(["run", "demo", "--methods", "[markov]", "--out", str(place)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("text", ["adapt: 3", "adapt: []", "prepare: {synthetic: 3}"])
def test_a_section_that_is_a_value_is_refused_by_name_and_not_dropped(
    text, tmp_path, capsys
) -> None:
    whole, over = tmp_path / "whole.yaml", tmp_path / "over.yaml"
    over.write_text(text)
    for given in ([str(over)], ["demo", "--config", str(over)]):
        assert main(["run", *given, "--out", str(tmp_path / "run")]) == 2
        assert "must be a section of fields with values" in capsys.readouterr().err
    whole.write_text("adapt:\nname: of defaults")  # an empty section
    assert parse_experiment(str(whole), []).adapt.max_steps == 600


@pytest.mark.parametrize("arms", ["lora", "[lora]", "{method: lora}"])
def test_arms_that_are_no_list_of_blocks_are_refused(arms, tmp_path, capsys):
    path = tmp_path / "words.yaml"
    path.write_text(f"arms: {arms}\n")
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "must be a list of blocks, such as [{method: ilora}]" in capsys.readouterr().err


LACKS = {
    "NumPy": MemoryError("Unable to allocate 7.28 TiB for an array"),
    "PyTorch, of a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "PyTorch, of the CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: 16 bytes"),
}


@pytest.mark.parametrize("whose", LACKS)
def test_a_lack_of_memory_is_one_message_and_another_fault_is_not(
    whose, tiny, tmp_path, monkeypatch, capsys
) -> None:
    def fails(self: Pipeline) -> None:
        raise error

    monkeypatch.setattr(Pipeline, "evaluate", fails)
    line, error = ["evaluate", str(tiny), "--out", str(tmp_path / "run")], LACKS[whose]
    assert main(line) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: memory does not suffice") and "batch_size" in told
    error = RuntimeError("the size of tensor a must match")
    with pytest.raises(RuntimeError, match="must match"):
        main(line)


@pytest.mark.parametrize("command", ["run", "study", "bench"])
def test_help_is_printed_without_a_name_too(command, capsys) -> None:
    assert main([command, "--help"]) == 0
    assert "usage: python -m recipes COMMAND" in capsys.readouterr().out


def test_prepare_takes_a_dataset_and_a_folder_for_its_tables(tmp_path) -> None:
    line = ["prepare", "synthetic", "--out", str(tmp_path), "--synthetic.num_users", "40"]
    assert main(line) == 0
    assert {path.name for path in tmp_path.glob("*.parquet")} == {
        "interactions.parquet",
        "items.parquet",
        "examples.parquet",
        "candidates.parquet",
    }


@pytest.mark.parametrize("name", shipped(EXPERIMENTS))
def test_every_shipped_experiment_parses_and_every_field_can_be_overridden(name) -> None:
    assert yaml_file(EXPERIMENTS, name, "experiment").is_file()
    experiment = parse_experiment(
        name, ["--source=raw", "--llm", "gpt2", "--adapt.stand_in.max_steps", "7", "--seeds", "3"]
    )
    assert experiment.name == name
    assert experiment.prepare.source == "raw" and experiment.adapt.llm == "gpt2"
    assert experiment.adapt.stand_in.max_steps == 7 and experiment.seeds == 3


@pytest.mark.parametrize("name", shipped(EXPERIMENTS))
def test_every_shipped_experiment_resolves_to_its_arms(name, monkeypatch) -> None:
    monkeypatch.setattr("recipes.pipeline.check_smollm2", lambda: None)  # it need not be installed
    experiment = parse_experiment(name, [])
    names = [arm.name for arm in Pipeline.of(experiment).arms]
    assert set(names) >= {"random", "popularity", "sasrec", *experiment.adapt.methods}


@pytest.mark.parametrize("name", shipped(STUDIES))
def test_every_shipped_study_parses_and_resolves_to_its_arms(name) -> None:
    study = read_study(name, None, [])
    assert study.name == name and study.out == Path("runs") / name
    for cell in study.cells:
        assert cell.experiment.arms is not None
        found = {arm.method.name for arm in comparison(cell.experiment).arms}
        endings = {"tune": "-tuned", "trained_on": "-transferred"}
        assert found >= {
            entry["method"] + "".join(end for key, end in endings.items() if key in entry)
            for entry in cell.experiment.arms
        }


def test_list_names_everything_with_a_line_each_as_json_and_as_text(capsys) -> None:
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = ["datasets", "recommenders", "methods", "experiments", "presets", "studies"]
    assert list(found) == kinds
    assert list(found["methods"]) == list(METHODS)
    assert {"sasrec", "popularity"} <= found["recommenders"].keys() <= found["methods"].keys()
    assert found["datasets"].keys() >= {"lastfm", "synthetic"}
    assert (found["experiments"], found["studies"]) == (shipped(EXPERIMENTS), shipped(STUDIES))
    lines = [line for names in found.values() for line in names.values()]
    assert all(line and "\n" not in line for line in lines)
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(line in text for line in lines)


@pytest.mark.slow
@pytest.mark.long
def test_the_demo_shows_ilora_ahead_of_lora_with_intervals_that_do_not_overlap(tmp_path) -> None:
    # The rows of its report that the assertion reads; the control's would take a third of the time.
    done = run("run", "demo", "--methods", "[lora, ilora]", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    for key in ("hit_ratio@1/generation/total", "hit_ratio@1/ranking"):
        by_method = {entry["method"]: entry for entry in results["metrics"] if entry["key"] == key}
        assert by_method["ilora"]["low"] > by_method["lora"]["high"]
    trained = results["trainable_parameters"]
    assert abs(trained["ilora"]["total"] / trained["lora"]["total"] - 1) < 0.01
