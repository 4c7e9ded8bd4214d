"""The record of a finished stage: by what it was made, and what it holds.

A stage's folder holds its files and `record.json`. The record carries the stage's settings and
version, what it read, and the SHA-256 of every file it wrote. A stage whose record matches what is
asked for is not run again (`stages.py`), and a later stage reads only what a matching record
describes: a file that was edited by hand or has been damaged is noticed by its content.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recipes.artifacts import known_sha256, read_json, write_json

RECORD, SEAL = "record.json", "sha256"
"""A record's file, and the field that holds a checksum over its others."""
DATA = (".safetensors", ".parquet")
"""Endings of the files that later stages compute with."""
SHOWN, LONGEST_VALUE = 5, 80
"""Names of files in a message, and characters of a setting's value, at most."""
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
    """What the stage read, by name: SHA-256 of stages' contents and of files."""
    files: dict[str, str]
    """SHA-256 of each file written, by its path inside the stage's folder."""
    versions: dict[str, str]
    seconds: float
    """Wall-clock time of the run that finished the stage."""

    @property
    def content(self) -> str:
        """SHA-256 over what was asked for and the tensors and tables that came of it.

        Later stages name it as their input, because a training that is repeated on another machine
        need not give the same weights. Logs and configurations do not count: they hold paths.
        """
        data = {name: one for name, one in self.files.items() if Path(name).suffix in DATA}
        text = json.dumps([self.fingerprint, data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Stage:
    """A piece of work, with everything that determines its result."""

    name: str
    """Name in messages, such as `adapt ilora seed 0`; part of the fingerprint."""
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    """What the stage reads, by name: SHA-256 of stages' contents and of files."""
    version: int = 1
    """Version of the stage's code, see `Record`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the stage's result."""
        parts = [self.name, self.version, self.settings, dict(self.inputs)]
        text = json.dumps(canonical(parts), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: Any) -> Any:
    """Give equal settings one spelling, so that 32 and 32.0, or a tuple and a list, hash alike."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): canonical(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(one) for one in value]
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
    found = parsed(path)
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
        ValueError: The stage was run with other settings or on other data, or its files are not
            those that it has written.
    """
    found = read_record(folder, command)
    if found.fingerprint != stage.fingerprint:
        raise ValueError(
            f"{folder} {difference(stage, found)}: run `python -m recipes {command}` again, or "
            "give the settings it was made with"
        )
    if lost := lost_files(folder, found):
        raise ValueError(f"{folder} {told(lost)}: run `python -m recipes {command}` again")
    return found


def write_record(path: Path, record: Record) -> None:
    """Write a record, with a checksum over its fields."""
    fields = asdict(record)
    write_json(path, fields | {SEAL: _seal(fields)})


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def parsed(path: Path) -> Record | None:
    """The record, or None if it is damaged, altered, or has the fields of another version."""
    try:
        fields = read_json(path)
        seal = fields.pop(SEAL, None)
        found = Record(**fields)
        if seal not in (None, _seal(fields)):  # earlier versions had none
            return None
        stage = Stage(found.stage, found.config, found.inputs, found.version)
        sound = found.fingerprint == stage.fingerprint and _sound(found)
    except (ValueError, TypeError, AttributeError):
        return None
    return found if sound else None


def _sound(found: Record) -> bool:
    """Whether the fields have the types that they should have."""
    texts = [*found.inputs.values(), *found.files.values(), *found.versions.values()]
    seconds = found.seconds
    return (
        isinstance(found.config, dict)
        and all(isinstance(one, str) for one in [found.stage, *texts])
        and isinstance(seconds, (int, float))
        and not isinstance(seconds, bool)
    )


def difference(stage: Stage, found: Record) -> str:
    """In what the requested stage differs from the one that was run, with both values."""
    if found.version != stage.version:
        return f"was made by version {found.version} of the stage, now {stage.version}"
    before, now = _flat(canonical(found.config)), _flat(canonical(stage.settings))
    changed = [
        f"{name}={_short(before.get(name))} (now {_short(now.get(name))})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    changed += sorted(
        f"another {name}"
        for name in found.inputs.keys() | stage.inputs.keys()
        if found.inputs.get(name) != stage.inputs.get(name)
    )
    return f"was made with {', '.join(changed)}" if changed else "was made by another stage"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}.."


def lost_files(folder: Path, record: Record) -> list[str]:
    """Files that are missing from a stage's folder, or have another content than it has written."""
    return [
        name
        for name, digest in record.files.items()
        if not (folder / name).is_file() or known_sha256(folder / name) != digest
    ]


def told(lost: list[str]) -> str:
    """Lost files in words; of many, the first few."""
    more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    return f"has lost or changed files ({', '.join(lost[:SHOWN])}{more})"
