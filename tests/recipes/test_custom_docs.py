"""docs/your_data.md: its programs and commands run as they are typed, and say what it shows."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from recipes.__main__ import main
from recipes.artifacts import read_json
from recipes.datasets.sources.columns import KNOWN

from .tiny_runs import refused

PAGE = (Path(__file__).parents[2] / "docs" / "your_data.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n# (\S+\.py)\n(.*?\n)```", PAGE, flags=re.DOTALL)
COMMANDS = [
    line.removeprefix("python -m recipes ")
    for block in re.findall(r"```bash\n(.*?)\n```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if not line.endswith(" FILE")
]
SHOWN = re.findall(r"```text\n(.*?)\n```", PAGE, flags=re.DOTALL)
QUICK = ["--recommender.max_epochs", "1", "--evaluate.bootstrap_samples", "100"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's programs have been run."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, code in PROGRAMS:
            Path(name).write_text(code, encoding="utf-8")
            runpy.run_path(name, run_name="__main__")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the programs made."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_by_reading(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("[custom] ")]


def test_the_programs_make_the_lines_that_are_shown(here: Path) -> None:
    lines = (here / "visits.csv").read_text(encoding="utf-8").splitlines()
    assert "\n".join(lines[:2]) == SHOWN[0]


def test_commands_lead_from_the_files_to_the_reports(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [command.split()[0] for command in COMMANDS] == ["prepare", "run", "run"]
    for command, shown in zip(COMMANDS, SHOWN[1:], strict=False):
        assert main([*shlex.split(command), *QUICK]) == 0
        said = capsys.readouterr().out
        assert said_by_reading(said) == said_by_reading(shown)
        for line in shown.splitlines():
            if line.startswith(("[prepare]", "report: ")):
                assert line in said
    for run in ("recommenders", "beauty"):
        report = (here / "runs" / run / "report.md").read_text(encoding="utf-8")
        assert "| SASRec |" in report and "**Source**: " in report
        arms = [arm["name"] for arm in read_json(here / "runs" / run / "results.json")["arms"]]
        assert arms == ["random", "popularity", "markov", "sasrec"]
    counts = read_json(here / "runs/beauty/prepare/manifest.json")["counts"]
    assert f"{counts['users']['test']} rows of" in SHOWN[3]  # what the 5-core leaves


@pytest.mark.parametrize(
    ("change", "options", "shown"),
    [
        (None, [], "visits.csv, line 1: no column is known as item among"),
        ("2024-02-30", ["--prepare.custom.item", "place"], SHOWN[-1].removeprefix("error: ")),
    ],
)
def test_a_mistake_is_answered_with_the_line_that_is_shown(
    here: Path, capsys: pytest.CaptureFixture[str], change: str | None, options, shown: str
) -> None:
    lines = (here / "visits.csv").read_text(encoding="utf-8").splitlines()
    if change is not None:
        lines[2] = re.sub(r"\d{4}-\d\d-\d\d", change, lines[2])
    (here / "visits.csv").write_text("\n".join(lines), encoding="utf-8")
    assert main(["prepare", "recommenders", "--source", "visits.csv", *options]) == 2
    line = refused(capsys.readouterr().err).removeprefix("error: ")
    assert line.startswith(shown)
    assert line in " ".join(PAGE.split())
    assert not list((here / "runs").rglob("*.parquet"))


def test_the_known_names_are_those_of_the_code() -> None:
    for role, names in KNOWN.items():
        assert f"| {role} | {', '.join(f'`{name}`' for name in names.split())} |" in PAGE


def test_adapters_are_prepared_for_on_the_same_data(here: Path) -> None:
    command = "prepare demo --prepare.dataset custom --source visits.csv --out runs/adapters"
    assert main([*command.split(), "--prepare.custom.item", "place"]) == 0
