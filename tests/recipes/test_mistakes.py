"""Every row of the recipes' part of docs/errors.md: one line, word by word, and nothing is lost."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from error_page import read_part
from mistakes import MISTAKES, PART, Mistake, line_of, row
from tiny_runs import Runs, finished_run, found, redone

DOCUMENTED = set(read_part(PART))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A finished run."""
    return finished_run(tmp_path_factory.mktemp("mistakes"))


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: f"{case.words} {case.command}"[:90])
def test_a_mistake_is_answered_as_the_page_says_and_changes_nothing(
    case: Mistake, runs: Runs
) -> None:
    before = found(runs.folder)
    assert row(case, line_of(case, runs)) in DOCUMENTED, "run python tests/recipes/mistakes.py"
    assert found(runs.folder) == before


def test_after_mistakes_the_right_command_finds_everything_done(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    results = runs.results
    for case in MISTAKES[:: len(MISTAKES) // 5]:
        line_of(case, runs)
    capsys.readouterr()
    assert runs("run") == 0
    assert not redone(capsys.readouterr().out)
    assert runs.results == results
