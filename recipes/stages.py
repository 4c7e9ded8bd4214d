"""Stages that run once, and lose nothing.

A stage works in a folder of its own, `FOLDER/.unfinished/FINGERPRINT`. When it has finished, what
`FOLDER` held before is kept as `FOLDER/.older/FINGERPRINT`, and the new files take its place, the
record last. So a command with a mistake, or a killed one, costs neither what was trained before nor
the checkpoints of an unfinished training, and asking for the old settings again brings the old
files back. Both folders may be deleted at any time.

Files are linked to their new place before they leave the old one, so that a kill at any moment
leaves each of them whole in at least one place.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from recipes.artifacts import filled, naming, sha256
from recipes.records import (
    RECORD,
    Record,
    Stage,
    difference,
    installed_versions,
    lost_files,
    parsed,
    told,
    write_record,
)

UNFINISHED, OLDER = ".unfinished", ".older"
NAME_LENGTH = 16
"""Digits of a fingerprint that name a folder."""


def run_stage(stage: Stage, folder: Path, work: Callable[[Path], None]) -> Record:
    """Run `work`, unless `folder` holds its result or has held it before.

    Args:
        stage: The requested stage: settings, inputs and version.
        folder: The stage's folder; created if missing, and not left empty by a refusal.
        work: Writes the stage's files into the folder that it is given. After a kill it is given
            the same folder again, with whatever it has left there.

    Returns:
        The record of the finished stage.
    """
    with filled(folder):
        return _run(stage, folder, work)


def _run(stage: Stage, folder: Path, work: Callable[[Path], None]) -> Record:
    path = folder / RECORD
    found = parsed(path) if path.exists() else None
    if found is not None and found.fingerprint == stage.fingerprint:
        lost = lost_files(folder, found)
        if not lost:
            print(f"[{stage.name}] already done: {folder}", flush=True)
            return found
        print(f"[{stage.name}] {told(lost)}", flush=True)
    elif path.exists():
        why = "was recorded by another version" if found is None else difference(stage, found)
        print(f"[{stage.name}] {why}; to be kept in {_older(folder, path)}", flush=True)
    name = stage.fingerprint[:NAME_LENGTH]
    for place in (folder / UNFINISHED / name, folder / OLDER / name):
        finished = _finished(place, stage)
        if finished is not None:
            print(f"[{stage.name}] done before: taken from {place}", flush=True)
            _install(finished, place, folder)
            return finished
    print(f"[{stage.name}] -> {folder}", flush=True)
    place = folder / UNFINISHED / name
    record = _worked(stage, place, work)
    _install(record, place, folder)
    return record


def _worked(stage: Stage, place: Path, work: Callable[[Path], None]) -> Record:
    """Work in `place`, and write the record there."""
    place.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        with naming(place.parent.parent):
            work(place)
    except BaseException:
        _remove_empty(place)
        raise
    record = Record(
        stage=stage.name,
        fingerprint=stage.fingerprint,
        version=stage.version,
        config=dict(stage.settings),
        inputs=dict(stage.inputs),
        files={name: sha256(place / name) for name in _files(place)},
        versions=installed_versions(),
        seconds=round(time.monotonic() - start, 3),
    )
    write_record(place / RECORD, record)
    return record


def _finished(place: Path, stage: Stage) -> Record | None:
    """The record of a finished stage in `place`, if it is this one and all its files are there."""
    path = place / RECORD
    found = parsed(path) if path.is_file() else None
    if found is None or found.fingerprint != stage.fingerprint or lost_files(place, found):
        return None
    return found


def _install(record: Record, place: Path, folder: Path) -> None:
    """Put the finished files of `place` into `folder`, and keep what was there as an older result.

    It can be killed at any moment: `place` is whole until everything is in `folder`.
    """
    _retire(folder, place)
    for name in record.files:
        _link(place / name, folder / name)
    for older in (folder / OLDER).glob(f"*/{RECORD}"):
        known = parsed(older)
        for name in () if known is None else known.files:
            if name not in record.files and _is_own(folder, name):
                (folder / name).unlink(missing_ok=True)
    _link(place / RECORD, folder / RECORD)
    shutil.rmtree(place)
    _remove_empty(place.parent)


def _retire(folder: Path, place: Path) -> None:
    """Keep what `folder` holds as an older result; from then on it has no record.

    A damaged result never takes the place of a whole one: neither of the one that an interrupted
    call has kept already, nor of `place`, whence the files are about to come.
    """
    path = folder / RECORD
    if not path.exists():
        return
    older, found = _older(folder, path), parsed(path)
    kept = parsed(older / RECORD) if (older / RECORD).is_file() else None
    if older != place and (kept is None or lost_files(older, kept)):
        for name in () if found is None else found.files:
            if (folder / name).is_file() and _is_own(folder, name):
                _link(folder / name, older / name)
        _link(path, older / RECORD)
    path.unlink()


def _older(folder: Path, record: Path) -> Path:
    """Where the result that a record describes is kept when another takes its place."""
    found = parsed(record)
    known = hashlib.sha256(record.read_bytes()).hexdigest() if found is None else found.fingerprint
    return folder / OLDER / known[:NAME_LENGTH]


def _is_own(folder: Path, name: str) -> bool:
    """Whether a file is the stage's, and not that of a stage whose folder lies in this one."""
    inner = list((folder / name).relative_to(folder).parents)[:-1]
    return not any((folder / one / RECORD).exists() for one in inner)


def _link(source: Path, target: Path) -> None:
    """Give a file a second place: by a link, or by a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # a rename onto itself does nothing


def _files(folder: Path) -> list[str]:
    """All files of a folder but hidden ones: a killed run may have left temporary files."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    seen = (path for path in found if not any(part.startswith(".") for part in path.parts))
    return sorted(path.as_posix() for path in seen if path.as_posix() != RECORD)


def _remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but empty folders, and its parent likewise."""
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder)
        if folder.parent.name == UNFINISHED:
            _remove_empty(folder.parent)
