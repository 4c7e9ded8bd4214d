"""docs/support.md claims what marked tests exist for, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
import support_matrix

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_page_lists_what_the_marked_tests_claim() -> None:
    options = ["--collect-only", "--support-check", "-q", "tests/plugin"]
    command = [sys.executable, "-m", "pytest", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "docs/support.md: current" in run.stdout


def test_the_lists_are_read_back_as_they_were_written() -> None:
    matrix = {
        ("Gates", "linear"): "works",
        ("Gates", "a: b, c (d)"): "refused",
        ("Versions", "e"): "untested",
    }
    assert support_matrix.parsed(support_matrix.lists(matrix)) == matrix


def test_an_item_that_no_test_claims_and_an_item_that_is_missing_are_both_named() -> None:
    gates = "Gates"
    claimed = {(gates, "new"): "works", (gates, "skipped"): "works"}
    page = {(gates, "old"): "refused", (gates, "skipped"): "untested"}
    assert support_matrix.differences(claimed, page) == [
        "('Gates', 'new'): marked works, written None",
        "('Gates', 'old'): marked None, written refused",
    ]
