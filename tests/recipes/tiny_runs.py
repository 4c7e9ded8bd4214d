"""A run so small that tests can make one from the command line, and what is left of it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.__main__ import main
from recipes.artifacts import read_json, sha256
from recipes.records import RECORD

TINY = """
name: tiny
prepare: {dataset: synthetic, protocol: chronological, synthetic: {num_users: 60}}
recommender: {hidden_size: 8, num_layers: 1, max_epochs: 1}
adapt:
  methods: [ilora]
  prompt_history: 1
  max_steps: 2
  batch_size: 4
  rank: 4
  logging_steps: 1
  stand_in:
    {hidden_size: 16, num_heads: 2, num_layers: 1, intermediate_size: 16, max_steps: 2,
     batch_size: 4}
evaluate: {rows: last, bootstrap_samples: 100, max_new_tokens: 8}
"""


class Runs:
    """Commands on one experiment and one folder, in this process.

    Args:
        folder: Where `tiny.yaml` is written, and the run's folder `run` lies.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder / "run"
        self.experiment = folder / "tiny.yaml"
        self.experiment.write_text(TINY)

    def __call__(self, command: str, *fields: Any, out: Path | None = None) -> int:
        """Run `python -m recipes COMMAND tiny.yaml --out FOLDER/run ..`; returns the status."""
        out = self.folder if out is None else out
        return main([command, str(self.experiment), "--out", str(out), *map(str, fields)])

    @property
    def results(self) -> Mapping[str, Any]:
        """`results.json` without what no two runs share."""
        found = read_json(self.folder / "results.json")
        for name in ("finished", "seconds"):
            del found[name]
        del found["config"]["out"]
        return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files that the records of a run name, by path: what was computed."""
    return {
        (record.parent / name).relative_to(folder).as_posix(): digest
        for record in folder.rglob(RECORD)
        if not any(part.startswith(".") for part in record.relative_to(folder).parts)
        for name, digest in read_json(record)["files"].items()
    }


def found(folder: Path) -> dict[str, str]:
    """SHA-256 of all files of a folder that are not hidden, by path."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def redone(said: str) -> list[str]:
    """Names of the stages that a command did anew, from what it printed."""
    lines = [line for line in said.splitlines() if line.startswith("[") and "] -> " in line]
    return [line[1 : line.index("]")] for line in lines]


def refused(error: str) -> str:
    """The one line of a refusal, from what a command printed as errors."""
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def finished_run(folder: Path) -> Runs:
    """The tiny experiment, run to its end."""
    runs = Runs(folder)
    assert runs("run") == 0
    return runs


def copied(finished: Runs, folder: Path) -> Runs:
    """A copy of a finished run, to be harmed."""
    copy = Runs(folder)
    shutil.copytree(finished.folder, copy.folder)
    return copy
