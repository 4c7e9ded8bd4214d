"""Kills a run again and again, and compares what comes of it with an undisturbed run.

`python tests/recipes/kills.py EXPERIMENT --kills 20 --out FOLDER [--seed 0] [--field value ...]`
runs an experiment undisturbed in FOLDER/whole. Then it runs it in FOLDER/killed, with SIGKILL at
random moments that are spread over all stages, and in the end without. Both must leave the same
`results.json`, apart from times, dates and the folder's name.

Every run is a process of its own, forked after the slow imports.
"""

import argparse
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked before it would be used

import recipes.pipeline
from recipes.__main__ import main as command_line

assert recipes.pipeline  # imported here, once for all runs
TIMES = ("finished", "seconds")
"""Fields of `results.json` that no two runs share."""
REPORT = "report"
LIMIT = 3600
"""Seconds after which a run counts as hung."""


class Child:
    """A run in a forked process, whose lines are read as they come."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become(arguments, writing, log)
        os.close(writing)
        self.lines: TextIO = os.fdopen(reading, encoding="utf-8")
        self.started = time.monotonic()

    def next_line(self) -> str:
        """The next line; empty at the end."""
        return self.lines.readline()

    def wait_or_kill(self, seconds: float) -> bool:
        """Wait for so long, reading on; then kill. Whether it was killed before its end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.lines], [], [], left)[0] and not self.lines.readline():
                break
        os.kill(self.pid, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for the process; its exit status, negative for a signal."""
        self.lines.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _become(arguments: Sequence[str], writing: int, log: Path) -> None:
    """The forked process: run the command and exit."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(writing, 1)
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
        status = command_line(list(arguments))
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  # nothing may return into the parent's code
        traceback.print_exc()
    finally:
        os._exit(status)


@dataclass(frozen=True)
class Undisturbed:
    """What an undisturbed run did."""

    results: dict[str, Any]
    seconds: dict[str, float]
    """Wall-clock time of each stage and of the report, in order."""


def undisturbed(arguments: Sequence[str], folder: Path) -> Undisturbed:
    """Run an experiment in a folder and take its time."""
    child, starts = Child([*arguments, "--out", str(folder)], folder.with_suffix(".log")), {}
    while line := child.next_line():
        if line.startswith("["):
            starts[line[1 : line.index("]")]] = time.monotonic()
    ended = time.monotonic()
    if status := child.end():
        raise SystemExit(f"the undisturbed run ended with {status}: {folder.with_suffix('.log')}")
    ends = [*list(starts.values())[1:], ended]
    seconds = {name: end - start for (name, start), end in zip(starts.items(), ends, strict=True)}
    last = list(seconds)[-1]  # evaluates what is there, then the report is written
    return Undisturbed(results_of(folder), seconds | {REPORT: seconds[last]})


def spread(seconds: dict[str, float], kills: int, chance: random.Random) -> list[str]:
    """The stages to kill in: each of them once if there are enough kills, then the long ones."""
    names = list(seconds)
    chosen = names if kills >= len(names) else chance.sample(names, kills)
    more = chance.choices(names, list(seconds.values()), k=max(0, kills - len(names)))
    return sorted([*chosen, *more], key=names.index)


def killed(
    arguments: Sequence[str],
    folder: Path,
    targets: Sequence[str],
    seconds: dict[str, float],
    chance: random.Random,
) -> list[str]:
    """Run an experiment with a kill in each target; returns what was killed where."""
    told = []
    for target in targets:
        child = Child([*arguments, "--out", str(folder)], folder.with_suffix(".log"))
        line = " "
        while line:
            line = child.next_line()
            late = target == REPORT and line.startswith("[evaluate] ")
            begun = line.startswith("[") and "] -> " in line
            # A stage that an earlier kill came too late for is done: then the next one is hit.
            if late or (begun and (line.startswith(f"[{target}]") or done(line, target, seconds))):
                break
        delay = chance.uniform(0, seconds[target])
        if not (child.wait_or_kill(delay) if line else child.end()):
            told.append(f"{target}: ended before it could be killed")
            continue
        told.append(f"{target}: killed {delay:.2f} s after {line.strip().split(' -> ')[0]}")
    return told


def done(line: str, target: str, seconds: dict[str, float]) -> bool:
    """Whether a stage that begins comes after the target."""
    names, begun = list(seconds), line[1 : line.index("]")]
    return begun in names and names.index(begun) > names.index(target)


def results_of(folder: Path) -> dict[str, Any]:
    """`results.json` without times, dates and the folder's name."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del found["config"]["out"]
    return {name: value for name, value in found.items() if name not in TIMES}


def different(one: Any, other: Any, place: str = "results") -> list[str]:
    """Where two values of JSON differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [
            line
            for key in keys
            for line in different(one.get(key), other.get(key), f"{place}.{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for at, pair in pairs for line in different(*pair, f"{place}[{at}]")]
    return [] if one == other else [f"{place}: {one!r} undisturbed, {other!r} after kills"]


def main(given: Sequence[str]) -> int:
    """Kill and compare; 0 if the results are the same and every kill hit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("experiment")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    own, fields = parser.parse_known_args(list(given))
    own.out.mkdir(parents=True)
    arguments, chance = ["run", own.experiment, *fields], random.Random(own.seed)
    whole = undisturbed(arguments, own.out / "whole")
    print("undisturbed:", {name: round(value, 2) for name, value in whole.seconds.items()})
    targets = spread(whole.seconds, own.kills, chance)
    told = killed(arguments, own.out / "killed", targets, whole.seconds, chance)
    print(*told, sep="\n", flush=True)
    last = undisturbed(arguments, own.out / "killed")
    found = different(whole.results, last.results)
    missed = sum("ended before" in line for line in told)
    print(*found, sep="\n")
    print(f"{len(told) - missed} kills, {len(found)} differences")
    return 1 if found or missed == len(told) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
