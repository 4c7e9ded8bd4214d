"""Cores that affinity or a container withholds are not counted."""

import os
from pathlib import Path

import pytest

from recipes import cores
from recipes.cores import usable_cores


def limited(monkeypatch: pytest.MonkeyPatch, path: Path, affinity: int, quota: str | None) -> int:
    """The number under an affinity to some of 64 cores, and a quota."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(cores, "QUOTA", path / "cpu.max")
    if quota is not None:
        (path / "cpu.max").write_text(quota)
    return usable_cores()


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [
        (8, None, 8),
        (8, "max 100000\n", 8),
        (8, "400000 100000\n", 4),
        (8, "150000 100000\n", 2),  # one core and a half
        (2, "400000 100000\n", 2),
        (8, "10000 100000\n", 1),
        (8, "\n", 8),  # no quota that is known
    ],
)
def test_affinity_and_quota_limit_the_cores(monkeypatch, tmp_path, affinity, quota, expected):
    assert limited(monkeypatch, tmp_path, affinity, quota) == expected


def test_a_system_without_affinity_has_its_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == 3
