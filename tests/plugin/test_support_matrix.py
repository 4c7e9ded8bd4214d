"""docs/support.md claims what marked tests exist for, and nothing else."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from support_matrix import COLLECTED, claimed, differences, lists, parsed, written

HERE = Path(__file__).parent


def test_the_page_lists_what_the_marked_tests_claim(request) -> None:
    items = request.session.stash[COLLECTED]
    if set(HERE.glob("test_*.py")) - {item.path for item in items}:
        pytest.skip("the run has not all tests of this folder: name the folder or none")
    assert differences(claimed(items), written()) == []


def test_the_lists_are_read_back_as_they_were_written() -> None:
    matrix = {
        ("Gates", "linear"): "works",
        ("Gates", "a: b, c (d)"): "refused",
        ("Versions", "e"): "untested",
    }
    assert parsed(lists(matrix)) == matrix
    assert differences(matrix, matrix) == []


def test_an_item_that_no_test_claims_and_an_item_that_is_missing_are_both_named() -> None:
    gates = "Gates"
    tests = {(gates, "new"): "works", (gates, "skipped"): "works", (gates, "other"): "works"}
    page = {(gates, "old"): "refused", (gates, "skipped"): "untested", (gates, "other"): "refused"}
    assert differences(tests, page) == [
        "('Gates', 'new'): marked works, written None",
        "('Gates', 'old'): marked None, written refused",
        "('Gates', 'other'): marked works, written refused",
    ]
