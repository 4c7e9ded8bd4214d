"""Studies: arms, and whatever else varies, in one table; every stage once."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError
from matplotlib.image import imread
from safetensors.torch import load_file, save_file

from recipes.__main__ import main
from recipes.arms import comparison
from recipes.datasets.synthetic import titles
from recipes.llm.stand_in_tokenizer import new_tokenizer
from recipes.report.adapters import gates_section, sizes_section
from recipes.report.study import of_cells, ranged
from recipes.study import read_study, run_study

from .language_models import SMALL, saved

BASE = """
name: tiny
prepare: {dataset: synthetic, protocol: chronological, synthetic: {num_users: 40}}
recommender: {hidden_size: 8, max_epochs: 1, batch_size: 64}
adapt:
  prompt_history: 1
  max_steps: 4
  batch_size: 4
  save_steps: 2
  logging_steps: 2
  stand_in: {hidden_size: 16, intermediate_size: 16, num_layers: 1, num_heads: 2, max_steps: 2}
evaluate: {rows: last, bootstrap_samples: 100, max_new_tokens: 2}
"""
ARMS = [{"method": "lora"}, {"method": "ilora", "num_experts": 2, "name": "two"}]
VARY = {"prepare.num_candidates": [12, 20]}


def written(folder: Path, **fields) -> Path:
    (folder / "tiny.yaml").write_text(BASE)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"base": str(folder / "tiny.yaml"), **fields}, sort_keys=False))
    return path


def read(folder: Path, out: Path | None = None, **fields):
    return read_study(str(written(folder, **fields)), None if out is None else str(out), [])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("study"), arms=ARMS, vary=VARY)


@pytest.fixture(scope="module")
def done(source) -> Path:
    """The folder of a finished study of two arms and two values."""
    study = read_study(str(source), str(source.parent / "out"), [])
    run_study(study)
    return study.out


def results_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def figures(out: Path) -> list:
    return results_of(out)["rows"]


def kinds(out: Path) -> dict[str, int]:
    """How many folders each stage has, without the checksum of its settings."""
    found: dict[str, int] = {}
    for record in (out / "stages").rglob("record.json"):
        name = record.parent.relative_to(out / "stages").as_posix().rpartition("-")[0]
        found[name] = found.get(name, 0) + 1
    return found


def test_every_stage_is_there_once_for_the_cells_that_share_it(done):
    assert kinds(done) == {
        "prepare": 2,
        "recommenders/sasrec": 1,
        "adapt/stand-in": 2,
        "adapt/lora-seed0": 2,
        "adapt/two-seed0": 2,
        "evaluate/parts/popularity-seed0": 2,
        "evaluate/parts/sasrec-seed0": 2,
        "evaluate/parts/lora-seed0": 2,
        "evaluate/parts/two-seed0": 2,
    }
    cells = {path.name for path in (done / "cells").iterdir()}
    assert cells == {"prepare.num_candidates=12", "prepare.num_candidates=20"}
    assert all((done / "cells" / name / "report.md").exists() for name in cells)


def test_another_study_in_the_same_folder_trains_only_what_it_has_of_its_own(
    done, tmp_path, capsys
):
    out = shutil.copytree(done, tmp_path / "out")
    study = read(tmp_path, out, arms=ARMS, vary={"evaluate.max_new_tokens": [2, 3]})
    run_study(study)
    told, found = capsys.readouterr().out, kinds(out)
    assert "[adapt lora seed 0] already done" in told and "[adapt lora seed 0] -> " not in told
    assert found["adapt/lora-seed0"] == found["adapt/two-seed0"] == found["prepare"] == 2
    assert found["recommenders/sasrec"] == 1
    # Two tokens are what the base says; another number of them is another evaluation.
    assert found["evaluate/parts/lora-seed0"] == 3


def test_running_it_again_trains_nothing_and_finds_the_same(done, source, capsys):
    before, records = figures(done), list((done / "stages").rglob("record.json"))
    times = [record.stat().st_mtime_ns for record in records]
    run_study(read_study(str(source), str(done), []))
    told = capsys.readouterr().out
    assert "] -> " not in told and told.count("[adapt lora seed 0] already done") == 2
    assert [record.stat().st_mtime_ns for record in records] == times
    assert len(records) == len(list((done / "stages").rglob("record.json")))
    assert figures(done) == before


def test_rows_hold_arm_method_what_varied_and_metrics(done):
    results = results_of(done)
    names = ["random", "popularity", "sasrec", "lora", "two"]
    assert [(arm["name"], arm["method"]) for arm in results["arms"]] == [
        *((name, name) for name in names[:4]),
        ("two", "ilora"),
    ]
    assert results["differs"] == ["prepare.num_candidates", "num_experts"]
    rows = results["rows"]
    assert [(row["arm"], row["varied"]) for row in rows] == [
        (name, {"prepare.num_candidates": count}) for count in (12, 20) for name in names
    ]
    for row in rows:
        assert row["metrics"]["hit_ratio@1/ranking"]["value"] >= 0
        assert row["given"] == ({"num_experts": 2} if row["arm"] == "two" else {})
        assert (row["trainable_parameters"] is None) == (row["arm"] not in ("lora", "two"))
    assert rows[0]["metrics"]["hit_ratio@1/ranking"]["value"] == 1 / 12
    assert [cell["varied"] for cell in results["cells"]] == [
        {"prepare.num_candidates": 12},
        {"prepare.num_candidates": 20},
    ]


def test_rows_are_those_of_each_cells_own_report(done):
    rows = figures(done)
    for count in (12, 20):
        cell = results_of(done / "cells" / f"prepare.num_candidates={count}")
        mine = [row for row in rows if row["varied"]["prepare.num_candidates"] == count]
        for row in mine:
            own = {e["key"]: e for e in cell["metrics"] if e["method"] == row["arm"]}
            assert row["metrics"] == own


def test_the_page_names_what_differs_and_compares_within_each_cell(done):
    text = (done / "study.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| method |"))
    assert head.startswith("| method | prepare.num_candidates | num_experts | HitRatio@1 gen")
    first, gates = text.split("## What the gates did")
    assert gates.count("| two, num_candidates 12 | 0 |") == 1 and "(gates.png)" in gates
    table = [line for line in first.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 10 and len({line.count("|") for line in table}) == 1
    assert any(line.startswith("| ilora | 20 | 2 |") for line in table)
    verdicts = text.split("## The best arm against its strongest rival")[1].split("##")[0]
    assert "- prepare.num_candidates 12: " in verdicts
    assert "- prepare.num_candidates 20: " in verdicts
    assert "**The language model is a stand-in**" in text.split("| method |")[0]
    assert imread(done / "study.png").shape[0] > 300


def test_every_plot_is_there_as_png_and_as_svg_and_in_one_page_that_needs_no_file(done):
    plots = {path.name for path in done.iterdir() if path.suffix in (".png", ".svg")}
    names = ("study", "curves", "gates")
    assert plots == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all((done / f"{name}.svg").read_text().count("<svg ") == 1 for name in names)
    html = (done / "study.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 3 and all(one.startswith("data:image/png;base64,") for one in sources)
    assert "<title>Study: small</title>" in html and "<td>ilora</td>" in html


def test_fields_of_the_command_line_hold_in_every_cell(source):
    study = read_study(str(source), None, ["--adapt.max_steps", "9", "--seeds=2"])
    assert [cell.experiment.adapt.max_steps for cell in study.cells] == [9, 9]
    assert [cell.experiment.seeds for cell in study.cells] == [2, 2]
    assert study.out == Path("runs/small")


def test_all_combinations_are_taken_and_fields_of_the_study_go_over_the_base(tmp_path):
    vary = {"prepare.num_candidates": [12, 20], "adapt.rank": [4, 8, 16]}
    study = read(tmp_path, arms=ARMS, vary=vary, recommender={"hidden_size": 4}, seeds=3)
    assert [cell.name for cell in study.cells] == [
        f"prepare.num_candidates={count},adapt.rank={rank}"
        for count in (12, 20)
        for rank in (4, 8, 16)
    ]
    for cell in study.cells:
        assert cell.experiment.recommender.hidden_size == 4
        assert cell.experiment.recommender.batch_size == 64
        assert cell.experiment.seeds == 3
        assert cell.experiment.adapt.rank == cell.varied["adapt.rank"]


def test_without_anything_that_varies_there_is_one_cell(tmp_path):
    study = read(tmp_path, arms=ARMS)
    assert [cell.name for cell in study.cells] == ["all"]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"base": "nothing"}, ValueError, "EXPERIMENT='nothing' is neither a shipped experiment"),
        ({"base": None}, ValueError, "names no experiment: write `base: demo`"),
        ({"vary": {"prepare.nonsense": [1]}}, ArgumentError, "nonsense"),
        ({"adapt": {"nonsense": 1}}, ArgumentError, "nonsense"),
        ({"arm": ARMS}, ArgumentError, "arm"),
        ({"vary": {"adapt.rank": []}}, ValueError, "vary.adapt.rank must be a list of values"),
        ({"vary": {"adapt.rank": 8}}, ValueError, "must be a list of values, not 8"),
        ({"vary": [1, 2]}, ValueError, "vary"),
        ({"vary": None}, ValueError, "vary"),
        ({"vary": {1: [2]}}, ValueError, "vary must name fields"),
        ({"vary": {"arms": [ARMS]}}, ValueError, "list all arms to compare under `arms`"),
        ({"vary": {"adapt.methods": [["lora"]]}}, ValueError, "list all arms to compare under"),
        ({"vary": {"name": ["a"]}}, ValueError, "vary.name: this is the study's own"),
        ({"vary": {"adapt.rank": [4, 8, 4]}}, ValueError, "vary has {'adapt.rank': 4} twice"),
        ({"vary": {"adapt.rank": [4, None]}}, ValueError, "adapt.rank has no value"),
        ({"along": "adapt.rank"}, ValueError, "along='adapt.rank' does not differ between rows"),
        ({"along": ["adapt.rank"]}, ValueError, "choose a field of `vary` or a setting of arms"),
        ({"columns": "mrr/ranking"}, ValueError, "columns='mrr/ranking' must be a list"),
        ({"columns": [["mrr/ranking"]]}, ValueError, "columns=[['mrr/ranking']] must be a list"),
        ({"columns": ["mrr/ranking"] * 2}, ValueError, "must be a list, without repeats, from"),
        ({"columns": ["ndcg@77/ranking"]}, ValueError, "columns=['ndcg@77/ranking'] must be"),
    ],
    ids=str,
)
def test_a_study_that_cannot_be_read_is_refused(tmp_path, fields, error, message):
    with pytest.raises(error) as refused:
        read(tmp_path, **fields)
    assert message in str(getattr(refused.value, "message", refused.value))


@pytest.mark.parametrize(
    "text",
    ["a: [1", "[" * 3000, "", "[1]", "base: a\nbase: b", "base: tiny\nadapt: {rank: 4, rank: 8}"],
)
@pytest.mark.parametrize("place", ["small.yaml", "tiny.yaml"])
def test_a_file_without_fields_is_refused_as_study_and_as_base(text, place, tmp_path):
    study = written(tmp_path, arms=ARMS)
    (tmp_path / place).write_text(text)
    with pytest.raises(ValueError, match=f"{place} (is no YAML|must consist of fields)"):
        read_study(str(study), None, [])


def test_a_varied_field_cannot_be_set_on_the_command_line(source, tmp_path):
    with pytest.raises(ValueError, match="num_candidates=15 is given on the command line, but"):
        read_study(str(source), None, ["--prepare.num_candidates", "15"])
    over = tmp_path / "over.yaml"
    over.write_text("prepare: {num_candidates: 15}")
    with pytest.raises(ValueError, match="the study varies it"):
        read_study(str(source), None, ["--config", str(over)])
    over.write_text("prepare: {num_candidates: 15, num_candidates: 15}")
    for given in (["--config", str(over)], [f"--config={over}"]):
        with pytest.raises(ValueError, match="over.yaml is no YAML: num_candidates stands twice"):
            read_study(str(source), None, given)


def test_methods_of_the_command_line_are_refused_beside_arms(source):
    with pytest.raises(ValueError, match="--methods has no effect beside `arms`"):
        read_study(str(source), None, ["--methods", "[lora]"])


def test_a_study_may_name_its_folder_and_the_command_line_another(tmp_path):
    path = str(written(tmp_path, arms=ARMS, out="there"))
    assert read_study(path, None, []).out == Path("there")
    assert read_study(path, "here", []).out == Path("here")


def test_an_arm_has_the_name_that_it_has_in_a_run(tmp_path):
    entry = {"method": "ilora", "num_experts": 8, "gate": "mlp"}
    (cell,) = read(tmp_path, arms=[entry]).cells
    assert comparison(cell.experiment).arms[-1].name == "ilora,num_experts=8,gate=mlp"


def test_a_cells_folder_has_a_short_name_of_its_own(tmp_path):
    modules = [[f"module_number_{i}" for i in range(30)], ["a/b"], ["a_b"]]
    study = read(tmp_path, arms=ARMS, vary={"adapt.target_modules": modules})
    names = [cell.name for cell in study.cells]
    assert len(set(names)) == 3 and all(len(name) <= 100 and "/" not in name for name in names)


def test_an_impossible_value_of_a_late_cell_costs_no_early_one_any_work(tmp_path):
    study = read(tmp_path, tmp_path / "out", arms=ARMS, vary={"adapt.rank": [4, 5]})
    with pytest.raises(ValueError, match="adapt.rank=5 is not divisible by adapt.num_experts=2"):
        run_study(study)
    assert not (tmp_path / "out").exists()


def test_rows_and_weights_of_a_late_cell_are_tried_before_anything_is_trained(tmp_path):
    """A model of several cells is loaded once for all of them, and is not kept."""
    out = tmp_path / "out"
    sizes = {**SMALL, "num_key_value_heads": 2}
    whole = saved(tmp_path / "whole", "llama", new_tokenizer(titles(4), 300), **sizes)
    broken = shutil.copytree(whole, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    room = {"max_new_tokens": None}
    late = {"adapt.llm": [str(whole), str(broken)], "adapt.max_steps": [1, 2]}
    rows = {"evaluate.min_history": [3, 59], "prepare.max_history": [60]}
    for vary, arm, message in ((late, "lora", "broken.*not finite"), (rows, "sasrec", "0 users")):
        with pytest.raises(ValueError, match=message):
            run_study(read(tmp_path, out, arms=[{"method": arm}], vary=vary, evaluate=room))
        assert not list(out.glob("stages/recommenders/*"))


def command(source: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "recipes", "study", str(source), "--out", str(out)]


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_study_resumes_to_the_result_of_an_undisturbed_one(done, source, tmp_path, capsys):
    killed, environment = tmp_path / "killed", {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(source, killed),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # The second cell's first adapter is being trained.
    while len(list(killed.glob("stages/adapt/lora-seed0-*"))) < 2:
        assert process.poll() is None, "the study ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "results.json").exists()
    capsys.readouterr()
    assert main(["study", str(source), "--out", str(killed)]) == 0
    told = capsys.readouterr().out
    assert "[adapt two seed 0] already done" in told
    assert figures(killed) == figures(done)
    assert f"page: {killed / 'study.md'}" in told


def test_equal_sections_of_cells_are_shown_once_and_others_name_their_cells():
    cells = [{"varied": {"core": core}, "text": text} for core, text in enumerate(("A", "", "B"))]
    cells += [{"varied": {"core": None}, "text": "A"}]

    def section(cell):
        return f"## Title\n\n{cell['text']}" if cell["text"] else ""

    assert of_cells({"cells": cells}, section) == [
        "## Title (`core: 0`; `core: –`)\n\nA",
        "## Title (`core: 2`)\n\nB",
    ]
    assert of_cells({"cells": cells[::3]}, section) == ["## Title\n\nA"]


def test_sizes_and_modulations_of_several_cells_say_whose_they_are():
    adapt = {"max_steps": 4, "batch_size": 8, "learning_rate": 0.1, "gate_learning_rate_scale": 1.0}
    one = {"seed": 0, "of": "scale"}
    one |= dict.fromkeys(("mean_abs", "mean_abs_of_mean", "std_users", "std_rows"), 0.5)
    cells = [
        {
            "varied": {"prepare.dataset": name},
            "config": {"adapt": adapt},
            "seconds": {"ilora-seed0": 3.0},
            "modulations": {"ilora": [one]},
        }
        for name in ("movielens", "lastfm")
    ]
    counts = {"adapter": 6, "gate": 2, "projector": 0, "total": 8}
    row = {"arm": "ilora", "given": {}, "parameters": counts, "varied": cells[0]["varied"]}
    several = {"cells": cells, "rows": [row]}
    for section in (sizes_section, gates_section):
        words = " All this is of `prepare.dataset: movielens` alone.\n"
        assert words in section(several)
        assert words not in section({**several, "cells": cells[:1]})


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a 0.04 [0.03, 0.05].", "a 0.1 [-0.1, 0.3].", "a 0.05 [0.0, 0.1]."],
         ["a 0.04 [0.03, 0.05] to 0.1 [-0.1, 0.3]."]),
        (["a 0.04 [0.03, 0.05]", "a 0.04 [0.02, 0.06]"],
         ["a 0.04 [0.02, 0.06] to 0.04 [0.03, 0.05]"]),
        (["d -0.3 [-0.4, -0.2]", "d +0.1 [-0.1, +0.3]"],
         ["d -0.3 [-0.4, -0.2] to +0.1 [-0.1, +0.3]"]),
        (["20 sampled candidates, all windows", "100 sampled candidates, all windows"],
         ["20 to 100 sampled candidates, all windows"]),
        (["**One seed**", "**One seed**", "step 200 of 400", "step 300 of 400", "rate 1e-05"],
         ["**One seed**", "step 200 of 400", "step 300 of 400", "rate 1e-05"]),
        (["torch 2.11.0", "torch 2.12.1", "num_experts 4 (0.05)", "num_experts 8 (0.06)"],
         ["torch 2.11.0", "torch 2.12.1", "num_experts 4 (0.05)", "num_experts 8 (0.06)"]),
    ],
)  # fmt: skip
def test_texts_that_differ_in_figures_alone_are_one_with_their_ranges(texts, expected):
    assert ranged(texts) == expected
