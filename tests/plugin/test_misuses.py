"""Every row of docs/errors.md: the exception is the stated one, word by word, and harms nothing."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from error_page import read_part
from misuses import MISUSES, PART, Kit, Misuse, outcome, row

DOCUMENTED = set(read_part(PART))


def those(constructs: bool) -> list[Any]:
    return [
        pytest.param(case, id=f"{case.area}: {case.title}")
        for case in MISUSES
        if case.constructs == constructs
    ]


def assert_refused_as_documented(case: Misuse, kit: Kit) -> None:
    error = outcome(case, kit)
    assert error is not None, "nothing was raised"
    assert row(case, error, kit.folder) in DOCUMENTED, "run python tests/plugin/misuses.py"


@pytest.mark.parametrize("case", those(constructs=True))
def test_a_construction_is_refused_as_the_page_says(case: Misuse, tmp_path) -> None:
    kit = Kit(tmp_path)
    assert_refused_as_documented(case, kit)
    assert not kit.watched


@pytest.mark.filterwarnings("ignore")  # several of PEFT's refusals warn first
@pytest.mark.parametrize("case", those(constructs=False))
def test_a_misuse_raises_what_the_page_says_and_changes_nothing(case: Misuse, tmp_path) -> None:
    kit = Kit(tmp_path)
    assert_refused_as_documented(case, kit)
    assert kit.watched, "what the misuse acts on is not watched"
    assert kit.changes() == []


def test_the_page_has_the_rows_of_the_table_and_no_others() -> None:
    rows = [line for line in DOCUMENTED if line.startswith("| ") and "| `" in line]
    assert len(rows) == len(MISUSES) >= 60
