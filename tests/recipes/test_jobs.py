"""Processes that share tasks."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from recipes import jobs
from recipes.cores import usable_cores
from recipes.jobs import shared_out
from recipes.records import DATA

from .tiny_runs import Runs, digests

SIGNALS = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM}

PARENT = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from recipes.cores import usable_cores
from recipes.jobs import shared_out
from recipes.records import DATA
from tests.recipes.test_jobs import start
if __name__ == "__main__":
    shared_out(partial(start, Path(sys.argv[2])), ["sleep"], 1, "sleeping")
"""


class Unpicklable(Exception):
    """Its copy in another process lacks what the constructor needs."""

    def __init__(self, text: str, *, response: object) -> None:
        super().__init__(text)
        self.response = response


def start(folder: Path):
    """What does the tasks of these tests: each leaves a file of its name."""
    if (folder / "at once").exists():
        os.kill(os.getpid(), signal.SIGTERM)

    def do(task: str) -> None:
        (folder / task).write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
        if task == "mistake":
            raise ValueError("the task's own words")
        if task == "unpicklable":
            raise Unpicklable("said the library", response=None)
        if task == "unreadable":
            raise Unpicklable("said the library", response=lambda: None)
        if task in SIGNALS:
            os.kill(os.getpid(), SIGNALS[task])
        if task == "exit":
            os._exit(3)
        while task == "sleep":
            time.sleep(0.1)

    return do


def test_every_task_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = [f"task{number}" for number in range(7)]
    shared_out(partial(start, tmp_path), names, 2, "tasks")
    found = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert sorted(found) == names
    processes, threads = zip(*found.values(), strict=True)
    assert os.getpid() not in map(int, processes) and len(set(processes)) <= 2
    assert set(threads) == {str(max(1, usable_cores() // 2))}
    assert "OMP_NUM_THREADS" not in os.environ


def test_what_a_task_raises_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^the task's own words") as caught:
        shared_out(partial(start, tmp_path), ["mistake", "sleep", "never"], 2, "tasks")
    assert "in do" in caught.value.__notes__[0]
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("task", ["unpicklable", "unreadable"])
def test_an_error_that_cannot_be_sent_is_told_in_words(tmp_path: Path, task: str) -> None:
    with pytest.raises(RuntimeError, match="^Unpicklable: said the library") as caught:
        shared_out(partial(start, tmp_path), [task], 1, "tasks")
    assert "in do" in caught.value.__notes__[0]


ENDS = {
    "killed": (MemoryError, "killed the process that did killed: choose fewer --jobs"),
    "terminated": (ChildProcessError, "that did terminated has ended by the signal SIGTERM: the"),
    "exit": (ChildProcessError, "that did exit has ended by exit status 3: the same command"),
}


@pytest.mark.parametrize("task", ENDS)
def test_a_process_that_ends_is_told_with_its_task(tmp_path: Path, task: str) -> None:
    error, said = ENDS[task]
    with pytest.raises(error, match=said):
        shared_out(partial(start, tmp_path), [task], 1, "tasks")


def test_a_process_that_ends_before_its_first_task_is_told(tmp_path: Path) -> None:
    (tmp_path / "at once").touch()
    with pytest.raises(ChildProcessError, match="that began has ended by the signal SIGTERM"):
        shared_out(partial(start, tmp_path), ["never"], 1, "tasks")


class Gone:
    """A channel whose other side is gone: with or without a message that it has not read."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def recv(self) -> None:
        raise self.error

    def send(self, task: str) -> None:
        raise self.error


class Ended:
    exitcode = -9

    def join(self) -> None:
        """It has ended."""


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, BrokenPipeError])
def test_however_the_other_side_is_gone_it_is_the_end_of_its_process(
    error: type[Exception],
) -> None:
    channel = Gone(error)
    for use in (channel.recv, lambda: channel.send("task")):
        with (
            pytest.raises(MemoryError, match="that did adapt lora 0: choose"),
            jobs._told(Ended(), ("adapt", "lora", 0)),  # type: ignore[arg-type]
        ):
            use()


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    folder = tmp_path / "tasks"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, str(program), str(root), str(folder)])
    while not (folder / "sleep").exists() or not (folder / "sleep").read_text():
        assert parent.poll() is None
        time.sleep(0.1)
    process = int((folder / "sleep").read_text().split()[0])
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not _lives(process):
            return
        time.sleep(0.1)
    pytest.fail("the process went on")


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def computed(folder: Path) -> dict[str, str]:
    """Checksums of tensors and tables; configurations of adapters name the folder."""
    return {name: one for name, one in digests(folder).items() if Path(name).suffix in DATA}


@pytest.mark.slow
@pytest.mark.long
def test_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    one, two = Runs(tmp_path / "one"), Runs(tmp_path / "two")
    arms = ("--adapt.methods", "[lora, ilora]")
    assert one("run", *arms) == two("run", *arms, "--jobs", 2) == 0
    assert two.results == one.results
    assert computed(two.folder) == computed(one.folder)


def test_a_number_of_processes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in ("0", "-1", "many", "1.5"):
        assert Runs(tmp_path)("run", f"--jobs={number}") == 2
        assert f"--jobs {number}: choose a number of processes" in capsys.readouterr().err
