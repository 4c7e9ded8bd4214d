"""The README's support matrix claims what marked tests exist for, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_readmes_matrix_has_the_rows_of_the_marked_tests() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "--support-check", "-q", "tests"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "README's support matrix: current" in run.stdout
