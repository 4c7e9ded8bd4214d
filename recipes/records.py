"""Stages that run once: the record by which a stage resumes.

A stage writes its files into its own folder and, last, `record.json`. The record carries the
stage's settings and version, the fingerprints of what it read, and the SHA-256 of every file it
wrote. A stage whose record matches what is asked for is not run again; any other is, and its record
is kept beside the new one under a name that holds its fingerprint.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recipes.artifacts import read_json, sha256, write_json

RECORD = "record.json"
OLDER = "older-record-"
"""Prefix of the file name of a record that has been replaced."""
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "pandas",
    "peft-ilora",
)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@dataclass(frozen=True)
class Record:
    """Description of a finished stage (`record.json`)."""

    stage: str
    fingerprint: str
    """SHA-256 over stage, version, config and inputs."""
    version: int
    """Version of the stage's code; raised when the same settings begin to give other results."""
    config: dict[str, Any]
    inputs: dict[str, str]
    """What the stage read, by name: fingerprints of stages and checksums of files."""
    files: dict[str, str]
    """SHA-256 of each file written, by its path inside the stage's folder."""
    versions: dict[str, str]
    seconds: float
    """Wall-clock time of the run that finished the stage."""


@dataclass(frozen=True)
class Stage:
    """A piece of work, with everything that determines its result."""

    name: str
    """Name in messages, such as `adapt ilora seed 0`; part of the fingerprint."""
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    """What the stage reads, by name: fingerprints of stages and checksums of files."""
    version: int = 1
    """Version of the stage's code, see `Record`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the stage's result."""
        parts = [self.name, self.version, self.settings, dict(self.inputs)]
        text = json.dumps(_canonical(parts), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Give equal settings one spelling, so that 32 and 32.0, or a tuple and a list, hash alike."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _canonical(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(one) for one in value]
    return value


def read_record(folder: Path, command: str) -> Record:
    """Read a finished stage's record.

    Args:
        folder: The stage's folder.
        command: The command that runs the stage, for error messages.

    Raises:
        FileNotFoundError: The stage has not been run; the message names the command.
        ValueError: The record was written by another version of this package, or is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run `python -m recipes {command}` first (or `run`, which does all)"
        )
    found = _parsed(path)
    if found is None:
        raise ValueError(
            f"{path} was written by another version of peft-ilora, or is damaged: run "
            f"`python -m recipes {command}` again"
        )
    return found


def required_record(stage: Stage, folder: Path, command: str) -> Record:
    """Read a stage's record and check that it belongs to the requested stage.

    Args:
        stage: The requested stage: settings, inputs and version.
        folder: The stage's folder.
        command: The command that runs the stage, for error messages.

    Raises:
        FileNotFoundError: The stage has not been run.
        ValueError: The stage was run with other settings or on other data.
    """
    found = read_record(folder, command)
    if found.fingerprint != stage.fingerprint:
        raise ValueError(
            f"{folder} {_reason(stage, found)}: run `python -m recipes {command}` again, or give "
            "the settings it was made with"
        )
    return found


def run_stage(stage: Stage, folder: Path, work: Callable[[], None]) -> Record:
    """Run `work`, which fills `folder`, unless its record says that this has been done.

    Args:
        stage: The requested stage: settings, inputs and version.
        folder: The stage's folder; created if missing.
        work: Writes the stage's files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    if path.exists():
        found = _parsed(path)
        if found is not None and found.fingerprint == stage.fingerprint and _intact(folder, found):
            print(f"[{stage.name}] already done: {folder}", flush=True)
            return found
        _set_aside(stage, path, found)
    print(f"[{stage.name}] -> {folder}", flush=True)
    start = time.monotonic()
    work()
    record = Record(
        stage=stage.name,
        fingerprint=stage.fingerprint,
        version=stage.version,
        config=dict(stage.settings),
        inputs=dict(stage.inputs),
        files={name: sha256(folder / name) for name in _files(folder)},
        versions=installed_versions(),
        seconds=round(time.monotonic() - start, 3),
    )
    write_json(path, asdict(record))
    return record


def _parsed(path: Path) -> Record | None:
    """The record, or None if it is damaged or has the fields of another version."""
    try:
        found = Record(**read_json(path))
    except (ValueError, TypeError):
        return None
    tables, texts = (found.config, found.inputs, found.files), (found.stage, found.fingerprint)
    sound = all(isinstance(one, dict) for one in tables) and all(isinstance(t, str) for t in texts)
    return found if sound else None


def _set_aside(stage: Stage, path: Path, found: Record | None) -> None:
    """Rename an outdated record to keep it, and print why the stage runs again."""
    known = hashlib.sha256(path.read_bytes()).hexdigest() if found is None else found.fingerprint
    older = path.with_name(f"{OLDER}{known[:12]}.json")
    path.replace(older)
    print(f"[{stage.name}] {_reason(stage, found)}; its record is kept as {older.name}", flush=True)


def _reason(stage: Stage, found: Record | None) -> str:
    if found is None:
        return "was recorded by another version of peft-ilora"
    if found.fingerprint == stage.fingerprint:
        return "has lost or changed files"
    if found.version != stage.version:
        return f"was made by version {found.version} of the stage, now {stage.version}"
    before, now = _canonical(found.config), _canonical(stage.settings)
    names = sorted(before.keys() | now.keys())
    changed = [name for name in names if before.get(name) != now.get(name)]
    changed += sorted(
        name
        for name in found.inputs.keys() | stage.inputs.keys()
        if found.inputs.get(name) != stage.inputs.get(name)
    )
    if not changed:
        return "was made by another stage"
    return f"was made with another {', '.join(changed)}"


def _files(folder: Path) -> list[str]:
    # Hidden files are skipped: a killed run may have left a temporary file of `written_whole`.
    found = (path for path in folder.rglob("[!.]*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name != RECORD and not name.startswith(OLDER)]


def _intact(folder: Path, record: Record) -> bool:
    return all(
        (folder / name).exists() and sha256(folder / name) == digest
        for name, digest in record.files.items()
    )
