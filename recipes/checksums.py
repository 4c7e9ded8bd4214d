"""Checksums of a run's external inputs: raw files, and a language model's folder.

A checksum is stored with the file's state (`state_of`) and is reused while this is the same, so
large files are read once. Another file in its place is noticed whatever its size and times.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.artifacts import read_json, sha256, state_of, write_json

MEMORY = "checksums.json"
"""Name of the file in which a run's folder keeps the checksums."""


class Checksums:
    """SHA-256 of files, remembered in a JSON file.

    Args:
        memory: The JSON file. It is created when first needed; a damaged one is replaced.
    """

    def __init__(self, memory: Path) -> None:
        self.memory = memory

    def of_files(self, files: Mapping[str, Path]) -> dict[str, str]:
        """SHA-256 of each file, under the name that `files` gives it."""
        known, changed = self._known(), False
        found = {}
        for name, path in files.items():
            state, key = state_of(path), str(path.resolve())
            if state is not None and known.get(key, {}).get("state") == list(state):
                found[name] = known[key]["sha256"]
                continue
            found[name] = sha256(path)
            if state is not None:
                known[key] = {"state": list(state), "sha256": found[name]}
                changed = True
        if changed:
            write_json(self.memory, known)
        return found

    def of_folder(self, folder: Path) -> str:
        """One SHA-256 over the names and contents of a folder's files."""
        files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not _hidden(path.relative_to(folder))
        }
        digest = hashlib.sha256()
        for name, checksum in self.of_files(files).items():
            digest.update(f"{name} {checksum}\n".encode())
        return digest.hexdigest()

    def _known(self) -> dict[str, dict[str, Any]]:
        try:
            found = read_json(self.memory)
        except (FileNotFoundError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: one for key, one in found.items() if _sound(one)}


def _sound(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("state"), list)
        and isinstance(entry.get("sha256"), str)
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
