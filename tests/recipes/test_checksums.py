import hashlib
import os
import time
from pathlib import Path

import pytest

from recipes import artifacts, checksums
from recipes.checksums import Checksums


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def written(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, so that no test has to wait."""
    monkeypatch.setattr(artifacts, "SETTLED_NS", -1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content is read."""
    found, sha256 = [], checksums.sha256

    def counted(path: Path) -> str:
        found.append(path.name)
        return sha256(path)

    monkeypatch.setattr(checksums, "sha256", counted)
    return found


def test_the_content_decides_and_neither_name_nor_place(tmp_path: Path) -> None:
    files = {
        "a": written(tmp_path / "here" / "one.dat", "content"),
        "b": written(tmp_path / "there" / "two.dat", "content"),
        "c": written(tmp_path / "here" / "two.dat", "Content"),
    }
    found = Checksums(tmp_path / "memory.json").of_files(files)
    assert found == {"a": digest("content"), "b": digest("content"), "c": digest("Content")}


def test_a_file_is_read_once_while_its_size_and_time_stay(tmp_path: Path, reads: list[str]) -> None:
    files = {"a": written(tmp_path / "a.dat", "one"), "b": written(tmp_path / "b.dat", "two")}
    memory = tmp_path / "memory.json"
    first = Checksums(memory).of_files(files)
    assert reads == ["a.dat", "b.dat"]
    before = memory.stat().st_mtime_ns
    assert Checksums(memory).of_files(files) == first
    assert reads == ["a.dat", "b.dat"]
    assert memory.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", ["eno", "longer"])
def test_another_content_is_noticed_whatever_its_size_and_time_of_modification(
    tmp_path: Path, reads: list[str], content: str
) -> None:
    path = written(tmp_path / "a.dat", "one")
    memory, before = Checksums(tmp_path / "memory.json"), path.stat()
    memory.of_files({"a": path})
    time.sleep(0.02)  # the system's clock of files ticks every few milliseconds
    written(path, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert memory.of_files({"a": path}) == {"a": digest(content)}
    assert reads == ["a.dat"] * 2


def test_a_file_that_changed_a_moment_ago_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "SETTLED_NS", 10**12)
    path = written(tmp_path / "a.dat", "one")
    for content in ("one", "two"):
        path.write_text(content)
        assert Checksums(tmp_path / "memory.json").of_files({"a": path}) == {"a": digest(content)}
    assert reads == ["a.dat"] * 2


def test_files_of_one_name_in_two_folders_are_remembered_apart(tmp_path: Path) -> None:
    memory = Checksums(tmp_path / "memory.json")
    for _ in range(2):
        for content in ("one", "two"):
            path = written(tmp_path / content / "a.dat", content)
            os.utime(path, ns=(0, 0))
            assert memory.of_files({"a": path}) == {"a": digest(content)}


@pytest.mark.parametrize(
    "damage",
    [
        "",
        '{"truncated',
        "[1, 2]",
        '{"PATH": 7}',
        '{"PATH": null}',
        '{"PATH": {"size": 3, "mtime_ns": 1}}',
        '{"PATH": {"state": 3, "sha256": "0"}}',
        '{"PATH": {"state": [3], "sha256": null}}',
    ],
)
def test_a_damaged_memory_is_replaced(tmp_path: Path, reads: list[str], damage: str) -> None:
    path = written(tmp_path / "a.dat", "one")
    text = damage.replace("PATH", str(path.resolve()))
    memory = Checksums(written(tmp_path / "memory.json", text))
    for _ in range(2):
        assert memory.of_files({"a": path}) == {"a": digest("one")}
    assert reads == ["a.dat"]


def test_without_files_no_memory_is_made(tmp_path: Path) -> None:
    assert Checksums(tmp_path / "memory.json").of_files({}) == {}
    assert not list(tmp_path.iterdir())


def test_a_folders_checksum_changes_with_a_files_content_and_name_only(tmp_path: Path) -> None:
    memory = Checksums(tmp_path / "memory.json")
    model, copy = tmp_path / "model", tmp_path / "copy"
    for folder in (model, copy):
        written(folder / "config.json", "{}")
        written(folder / "inner" / "weights", "numbers")
    first = memory.of_folder(model)
    assert memory.of_folder(copy) == first
    written(model / ".hidden", "temporary")
    written(model / ".older" / "weights", "of another training")
    assert memory.of_folder(model) == first
    written(copy / "inner" / "weights", "other numbers")
    assert memory.of_folder(copy) != first
    written(model / "more", "")
    added = memory.of_folder(model)
    (model / "more").rename(model / "another")
    assert len({first, added, memory.of_folder(model)}) == 3
