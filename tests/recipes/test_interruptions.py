"""Nothing is lost and nothing mixes: kills, mistakes, full disks, two commands at once."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from recipes.__main__ import main
from recipes.artifacts import read_json
from recipes.checksums import Checksums
from recipes.locking import held
from recipes.run import Run

from .tiny_runs import TINY, Runs, copied, digests, finished_run, found, redone, refused

pytestmark = pytest.mark.plots

DROPOUT = """
name: dropout
prepare:
  {dataset: synthetic, protocol: chronological, train_share: 0.05, synthetic: {num_users: 60}}
recommender: {hidden_size: 8, num_layers: 1, max_epochs: 3, batch_size: 64}
adapt:
  methods: [ilora]
  prompt_history: 2
  max_steps: 9
  batch_size: 4
  gradient_accumulation_steps: 2
  lora_dropout: 0.3
  save_steps: 2
  logging_steps: 1
  validate_at: [1, 3, 6]
  keep: best
  patience: 3
  stand_in:
    {hidden_size: 16, num_heads: 2, num_layers: 1, intermediate_size: 16, max_steps: 5,
     batch_size: 4}
evaluate: {rows: last, bootstrap_samples: 100, max_new_tokens: 4}
"""


@pytest.mark.slow
@pytest.mark.long
def test_kills_at_random_moments_change_no_result(tmp_path: Path) -> None:
    """With dropout, accumulation and a choice of the step, over three epochs of sixteen windows.

    `python tests/recipes/kills.py` does it on any experiment.
    """
    (tmp_path / "dropout.yaml").write_text(DROPOUT)
    program = Path(__file__).with_name("kills.py")
    line = [str(program), str(tmp_path / "dropout.yaml"), "--kills", "6"]
    done = subprocess.run(
        [sys.executable, *line, "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " kills, 0 differences" in done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def runs(finished: Runs, tmp_path: Path) -> Runs:
    return copied(finished, tmp_path)


# ---------------------------------------------------------------- mistakes


@pytest.mark.long
def test_a_mistake_that_is_accepted_costs_nothing_either(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    results, computed = runs.results, digests(runs.folder)
    for fields in (
        ["--adapt.learning_rate", "0.5"],
        ["--recommender.seed", "1"],
        ["--prepare.candidate_seed", "7"],
    ):
        assert runs("run", *fields) == 0
        assert runs.results != results
        capsys.readouterr()
        assert runs("run") == 0
        assert not redone(capsys.readouterr().out)
        assert runs.results == results
        assert digests(runs.folder).items() >= computed.items()


def test_answers_constrained_to_candidates_are_valid_and_train_nothing_anew(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ("--evaluate.decoding", "candidates", "--evaluate.max_new_tokens", "null")
    assert runs("run", *fields) == 0
    assert "[adapt ilora seed 0] already done" in capsys.readouterr().out
    valid = {
        entry["method"]: entry["value"]
        for entry in runs.results["metrics"]
        if entry["key"] == "valid_ratio/generation" and entry.get("interval") != "exact"
    }
    assert valid == {"ilora": 1}
    assert "so that answers are valid by construction" in (runs.folder / "report.md").read_text()


def test_the_yaml_of_a_report_repeats_nothing(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs("report") == 0
    text = (runs.folder / "report.md").read_text()
    again = runs.experiment.with_name("again.yaml")
    again.write_text(text.split("```yaml\n")[1].split("```")[0])
    capsys.readouterr()
    assert main(["run", str(again)]) == 0
    said = capsys.readouterr().out
    assert not redone(said) and said.count("already done") == 8
    # As a tool writes it that knows no whole numbers among the floats.
    fields = yaml.safe_load(again.read_text())
    fields["adapt"]["lora_alpha"] = 32.0
    again.write_text(yaml.safe_dump(fields))
    assert main(["run", str(again)]) == 0
    assert not redone(capsys.readouterr().out)


def test_a_run_is_not_kept_in_the_folder_of_its_language_model(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run would change the model's content, and so find nothing done."""
    llm, before = tmp_path / "llm", found(runs.folder)
    shutil.copytree(runs.folder / "adapt" / "stand-in", llm)
    for out in (llm, llm / "runs" / "first", tmp_path / "run" / ".." / "llm" / "run"):
        assert runs("run", "--llm", llm, out=out) == 2
        assert f"lies in the folder of adapt.llm='{llm}'" in refused(capsys.readouterr().err)
    assert found(runs.folder) == before and not (llm / "prepare").exists()


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise RuntimeError("it requires wandb: run `pip install wandb`")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", missing)
    runs = Runs(tmp_path)
    for name, cause in (("nothing", "nothing is not supported"), ("wandb", "pip install wandb")):
        assert runs("run", "--adapt.report_to", f"[{name}]") == 2
        said = capsys.readouterr()
        line = refused(said.err)
        assert f"adapt.report_to names '{name}'" in line and cause in line
        assert redone(said.out) in (["prepare"], [])


# ---------------------------------------------------------------- full disks


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit on the size of files, which the system reports as it reports a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    finished: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The command stands in the lock, and may be longer than what the disk has room for.
    monkeypatch.setattr(sys, "argv", ["recipes", "run", "x" * 300])
    runs = Runs(tmp_path)
    lines = []
    for size in (0, 200, 3_000, 6_000, 20_000, 60_000):
        with largest_file(size):
            status = runs("run")
        if status == 0:
            break
        line = refused(capsys.readouterr().err)
        assert str(runs.folder) in line and "make room, and the same command goes on" in line
        lines.append(line)
        assert not [path for path in runs.folder.rglob(".*") if path.is_file()]
    assert len(lines) >= 3
    assert runs("run") == 0
    assert runs.results == finished.results


# ---------------------------------------------------------------- two at once

COMMANDS = ("run", "prepare", "recommender", "adapt", "evaluate", "report")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_refused_while_another_writes(
    runs: Runs, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = found(runs.folder)
    with held(runs.folder):
        assert runs(command, "--recommender.seed", "1") == 2
    assert f"{runs.folder} is in use by process" in refused(capsys.readouterr().err)
    assert found(runs.folder) == before


def test_a_second_study_in_a_folder_is_refused_and_a_run_in_one_of_its_cells_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"base": str(tmp_path / "tiny.yaml")}))
    out = tmp_path / "out"
    for busy in (out, out / "cells" / "all"):
        with held(busy):
            assert main(["study", str(study), "--out", str(out)]) == 2
        assert f"{busy} is in use" in refused(capsys.readouterr().err)


def test_tables_of_a_dataset_are_not_written_by_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(tmp_path / "tables"):
        assert main(["prepare", "synthetic", "--out", str(tmp_path / "tables")]) == 2
    assert "tables is in use" in refused(capsys.readouterr().err)


# ---------------------------------------------------------------- what a report tells


def test_a_stand_in_is_told_as_one_whatever_its_folder_is_called(
    runs: Runs, tmp_path: Path
) -> None:
    for place, names in enumerate([None, ("config.json", "model.safetensors", "token*")]):
        folder = tmp_path / f"Llama-{place}"
        folder.mkdir()
        for pattern in names or ["*.json", "model.safetensors"]:
            for path in (runs.folder / "adapt" / "stand-in").glob(pattern):
                shutil.copy(path, folder)
        assert runs("run", "--llm", folder) == 0
        results = read_json(runs.folder / "results.json")
        assert results["llm"]["stand_in"] and results["llm"]["name"] == str(folder)
        assert "**The language model is a stand-in**" in results["caveats"][0]
        assert "a toy made on the spot" in (runs.folder / "summary.txt").read_text()


def shifted(folder: Path) -> None:
    """Writes other weights into a model's folder."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_that_changes_during_a_run_is_recorded_as_it_was_loaded_or_refused(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One kind of start overwrites the model, which is then loaded again."""
    for arm, status in (({}, 0), ({"init_lora_weights": "olora"}, 2)):
        llm = tmp_path / f"llm-{status}"
        shutil.copytree(runs.folder / "adapt" / "stand-in", llm)
        before, train = Checksums(tmp_path / "memory").of_folder(llm), Run.train_network

        def train_and_change(
            run: Run, name: str, seed: int, llm: Path = llm, train: Any = train
        ) -> Any:
            shifted(llm)
            return train(run, name, seed)

        line = ["--llm", llm, "--arms", json.dumps([{"method": "lora", **arm}])]
        with monkeypatch.context() as patch:
            patch.setattr(Run, "train_network", train_and_change)
            assert runs("run", *line) == status
        if status == 2:
            assert "has changed while it was in use" in refused(capsys.readouterr().err)
            assert not list(runs.folder.glob("adapt/lora,*/record.json"))
            continue
        record = read_json(runs.folder / "adapt" / "lora-seed0" / "record.json")
        assert record["inputs"]["language model"] == before
        capsys.readouterr()
        assert runs("report", *line) == 2
        assert "was made with another language model" in refused(capsys.readouterr().err)


def test_figures_of_the_validation_users_and_of_unequal_trainings_bear_a_caveat(
    runs: Runs,
) -> None:
    arms = "[{method: lora, max_steps: 3}, {method: ilora}]"
    assert runs("run", "--evaluate.split", "val", "--arms", arms) == 0
    caveats = read_json(runs.folder / "results.json")["caveats"]
    assert any(one.startswith("**These are the validation users.**") for one in caveats)
    unlike = "**Adapters were not trained alike**: `max_steps` 3 (LoRA, max_steps 3), 2 (iLoRA)."
    assert any(one.startswith(unlike) for one in caveats)
    assert runs("run") == 0
    for one in read_json(runs.folder / "results.json")["caveats"]:
        assert "validation users" not in one and "trained alike" not in one
