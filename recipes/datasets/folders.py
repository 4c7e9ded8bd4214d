"""Where raw files lie in the folder that a user names: in it, or in a folder in it."""

from collections.abc import Sequence
from pathlib import Path

LEVELS = ("*", "*/*")
"""How deep a folder of raw files may lie, so that one folder may hold those of several datasets."""


def folder_with(source: Path, names: Sequence[str]) -> Path:
    """The folder that holds raw files.

    Args:
        source: The folder that the user names.
        names: Names of the files.

    Returns:
        The one folder in `source`, two levels down at most, that holds all of them; `source`, if
        it holds any itself, or none in it holds all.

    Raises:
        ValueError: Several folders hold them.
    """
    if any((source / name).is_file() for name in names):
        return source
    found = [
        path.parent
        for level in LEVELS
        for path in sorted(source.glob(f"{level}/{names[0]}"))
        if all((path.parent / name).is_file() for name in names)
    ]
    if len(found) > 1:
        raise ValueError(
            f"prepare.source={str(source)!r} holds {', '.join(names)} in several folders, "
            f"{found[0]} and {found[1]}: pass one of them"
        )
    return found[0] if found else source
