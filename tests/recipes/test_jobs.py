"""Processes that share tasks."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from recipes.jobs import shared_out
from recipes.records import DATA

from .tiny_runs import Runs, digests

PARENT = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from recipes.jobs import shared_out
from recipes.records import DATA
from tests.recipes.test_jobs import start
if __name__ == "__main__":
    shared_out(partial(start, Path(sys.argv[2])), ["sleep"], 1, "sleeping")
"""


def start(folder: Path):
    """What does the tasks of these tests: each leaves a file of its name."""

    def do(task: str) -> None:
        (folder / task).write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
        if task == "mistake":
            raise ValueError("the task's own words")
        if task == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
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
    assert set(threads) == {str(max(1, (os.cpu_count() or 1) // 2))}
    assert "OMP_NUM_THREADS" not in os.environ


def test_what_a_task_raises_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^the task's own words") as caught:
        shared_out(partial(start, tmp_path), ["mistake", "sleep", "never"], 2, "tasks")
    assert "in do" in caught.value.__notes__[0]
    assert not (tmp_path / "never").exists()


def test_a_killed_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match="choose fewer --jobs"):
        shared_out(partial(start, tmp_path), ["killed"], 1, "tasks")


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
    for jobs in ("0", "-1", "many", "1.5"):
        assert Runs(tmp_path)("run", f"--jobs={jobs}") == 2
        assert f"--jobs {jobs}: choose a number of processes" in capsys.readouterr().err
