"""The README's support matrix claims what marked tests exist for, and nothing else."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from support_matrix import AREAS, COLLECTED, claimed, differences, parsed, readme_matrix, table

HERE = Path(__file__).parent
MATRIX = {(AREAS[0], "a"): "works", (AREAS[1], "b"): "refused", (AREAS[0], "c"): "untested"}


def test_the_readmes_matrix_has_the_rows_of_the_marked_tests(request) -> None:
    items = request.session.stash[COLLECTED]
    if set(HERE.glob("test_*.py")) - {item.path for item in items}:
        pytest.skip("the run has not all tests of this folder: name the folder or none")
    assert differences(claimed(items), readme_matrix()) == []


def test_a_written_matrix_is_read_back_and_differences_are_named() -> None:
    assert parsed(table(MATRIX)) == MATRIX
    assert differences(MATRIX, MATRIX) == []
    key = (AREAS[0], "a")
    assert differences(MATRIX, MATRIX | {key: "refused"}) == [
        f"{key}: marked works, README refused"
    ]
    assert differences(MATRIX, MATRIX | {key: "untested"}) == []  # skipped when it was written
    gone = {name: state for name, state in MATRIX.items() if name != key}
    assert differences(gone, MATRIX) == [f"{key}: marked None, README works"]
    assert differences(MATRIX, gone) == [f"{key}: marked works, README None"]
