"""Stage directories: files written whole or not at all, and the record by which a stage resumes.

A stage writes its files into its own folder and, last, `record.json`. The record carries the
stage's config, the fingerprints of the stages it read, and the SHA-256 of every file it wrote. A
stage whose record matches what is asked for is not run again; any other is.
"""

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

RECORD = "record.json"
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


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON. NaN is refused: it is no JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    with written_whole(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_parts(path: Path, parts: Iterable[pa.Table]) -> None:
    """Write a table that is made part by part: one is written while the next one is made.

    Args:
        path: Where to.
        parts: At least one, all of one schema.
    """
    rest = iter(parts)
    first = next(rest)
    with (
        written_whole(path) as temporary,
        pq.ParquetWriter(temporary, first.schema) as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        written = thread.submit(writer.write_table, first)
        for part in rest:
            written.result()
            written = thread.submit(writer.write_table, part)
        written.result()


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with written_whole(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    """What a finished stage says of itself (`record.json`)."""

    stage: str
    fingerprint: str
    """SHA-256 over stage, config and inputs."""
    config: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprint of each stage that was read."""
    files: dict[str, str]
    """SHA-256 of each file written, by its path inside the stage's folder."""
    versions: dict[str, str]
    seconds: float
    """Wall-clock time of the run that finished the stage."""


def fingerprint(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """SHA-256 of what determines a stage's result."""
    text = json.dumps([stage, config, dict(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(folder: Path, stage: str) -> Record:
    """Read a finished stage's record.

    Raises:
        FileNotFoundError: The stage has not been run; the message names the command.
    """
    path = folder / RECORD
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run `python -m recipes {stage}` first (or `run`, which does all)"
        )
    return Record(**read_json(path))


def run_stage(
    stage: str,
    folder: Path,
    config: Any,
    inputs: Mapping[str, Record],
    work: Callable[[], None],
) -> Record:
    """Run `work`, which fills `folder`, unless its record says that this has been done.

    Args:
        stage: Name of the stage.
        folder: The stage's folder; created.
        config: The stage's dataclass, or a dict.
        inputs: Records of the stages that `work` reads.
        work: Writes the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = dict(config) if isinstance(config, Mapping) else asdict(config)
    read = {name: record.fingerprint for name, record in inputs.items()}
    wanted = fingerprint(stage, settings, read)
    if (folder / RECORD).exists():
        record = read_record(folder, stage)
        if record.fingerprint == wanted and _intact(folder, record):
            print(f"[{stage}] already done: {folder}", flush=True)
            return record
        (folder / RECORD).unlink()
    print(f"[{stage}] -> {folder}", flush=True)
    start = time.monotonic()
    work()
    record = Record(
        stage=stage,
        fingerprint=wanted,
        config=settings,
        inputs=read,
        files={name: sha256(folder / name) for name in _files(folder)},
        versions=installed_versions(),
        seconds=round(time.monotonic() - start, 3),
    )
    write_json(folder / RECORD, asdict(record))
    return record


def _files(folder: Path) -> list[str]:
    # A killed run may have left a hidden temporary of `written_whole`.
    found = (path for path in folder.rglob("[!.]*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name != RECORD]


def _intact(folder: Path, record: Record) -> bool:
    return all(
        (folder / name).exists() and sha256(folder / name) == digest
        for name, digest in record.files.items()
    )
