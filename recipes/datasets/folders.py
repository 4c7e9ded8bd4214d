"""Where raw files lie in the folder that a user names: in it, or in a folder in it."""

from collections.abc import Sequence
from pathlib import Path

from recipes.records import RECORD

LEVELS = ("*", "*/*")
"""How deep a folder of raw files may lie, so that one folder may hold those of several datasets."""


def folder_with(source: Path, names: Sequence[str]) -> Path:
    """The folder that holds raw files.

    Args:
        source: The folder that the user names.
        names: Names of the files.

    Returns:
        The one folder in `source`, two levels down at most, that holds all of them, or else the
        one that holds some; `source`, if it holds any itself, or there is no such folder.

    Raises:
        ValueError: Several folders hold them.
    """
    if any((source / name).is_file() for name in names):
        return source
    some = _folders(source, names)
    every = [folder for folder in some if all((folder / name).is_file() for name in names)]
    if len(every) > 1:
        raise ValueError(
            f"prepare.source={str(source)!r} holds {', '.join(names)} in several folders, "
            f"{every[0]} and {every[1]}: pass one of them"
        )
    (found,) = every or (some if len(some) == 1 else [source])
    return found


def _folders(source: Path, names: Sequence[str]) -> list[Path]:
    """Folders in `source` that hold any of the files, each once, whatever links lead to it.

    What a stage has written is no raw file, though it may have the name of one; nor is what lies in
    a hidden folder.
    """
    found: dict[Path, Path] = {}
    for level in LEVELS:
        for path in sorted(path for name in names for path in source.glob(f"{level}/{name}")):
            folder = path.parent
            hidden = any(part.startswith(".") for part in folder.relative_to(source).parts)
            if path.is_file() and not hidden and not (folder / RECORD).exists():
                found.setdefault(folder.resolve(), folder)
    return list(found.values())
