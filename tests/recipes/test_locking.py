"""One command at a time writes into a folder, whatever becomes of the one before."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recipes import locking
from recipes.locking import LOCK, InUseError, held

HOLD = """
import sys
from pathlib import Path
from recipes.locking import held
with held(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holding\n"
        yield process
        process.communicate(timeout=60)


def test_a_second_process_is_refused_by_folder_and_holder_until_the_first_ends(tmp_path) -> None:
    folder = tmp_path / "run"
    with holder(folder) as process:
        with pytest.raises(InUseError) as caught, held(folder):
            raise AssertionError("both hold it")
        assert f"{folder} is in use by process {process.pid} on " in str(caught.value)
        assert " since 20" in str(caught.value) and "choose another --out" in str(caught.value)
    with held(folder):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()


def test_the_lock_of_a_killed_process_is_free(tmp_path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait(60)
        assert (tmp_path / LOCK).exists()
        with held(tmp_path):
            pass


def test_what_an_earlier_process_left_in_the_file_locks_nothing(tmp_path) -> None:
    for text in ("", "no JSON", json.dumps({"process": 1, "host": "elsewhere"})):
        (tmp_path / LOCK).write_text(text)
        with held(tmp_path):
            pass


def test_a_holder_that_the_file_does_not_tell_is_refused_all_the_same(tmp_path) -> None:
    with held(tmp_path):
        (tmp_path / LOCK).write_text("no JSON")
        with pytest.raises(InUseError, match="is in use: wait until"), held(tmp_path):
            pass


def test_a_second_thread_is_refused(tmp_path) -> None:
    refused = list[BaseException]()

    def other() -> None:
        try:
            with held(tmp_path):
                pass
        except InUseError as error:
            refused.append(error)

    with held(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_a_lock_leaves_no_file_and_no_new_folder(tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "new"):
        with held(folder):
            pass
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="a mistake"), held(tmp_path / "new"):
        raise ValueError("a mistake")
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_file_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch) -> None:
    original, opened = locking._locked, list[str]()

    def late(stream) -> bool:
        if not opened:  # the last holder lets go between opening and locking
            Path(stream.name).unlink()
        opened.append(stream.name)
        return original(stream)

    monkeypatch.setattr(locking, "_locked", late)
    with held(tmp_path), pytest.raises(InUseError), held(tmp_path):
        pass
    assert len(opened) == 3


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys) -> None:
    def unsupported(*_given) -> None:
        raise OSError(locking.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", unsupported)
    with held(tmp_path), held(tmp_path):
        assert "no locks here (No locks available)" in capsys.readouterr().out


def test_a_failure_to_write_without_a_name_gets_the_folders(tmp_path) -> None:
    with pytest.raises(OSError, match="File too large") as caught, held(tmp_path / "run"):
        raise OSError(27, "[Errno 27] of a library that names no file")
    assert caught.value.filename == str(tmp_path / "run") and not list(tmp_path.iterdir())
