"""Checksums of a run's external inputs: raw files, and a language model's folder.

A checksum is stored with the file's size and modification time and is reused while both are the
same, so large files are read once.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from recipes.artifacts import read_json, sha256, write_json

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
            state = path.stat()
            key = str(path.resolve())
            entry = {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
            if known.get(key, {}) | entry != known.get(key):
                known[key] = entry | {"sha256": sha256(path)}
                changed = True
            found[name] = known[key]["sha256"]
        if changed:
            write_json(self.memory, known)
        return found

    def of_folder(self, folder: Path) -> str:
        """One SHA-256 over the names and contents of a folder's files."""
        files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        digest = hashlib.sha256()
        for name, checksum in self.of_files(files).items():
            digest.update(f"{name} {checksum}\n".encode())
        return digest.hexdigest()

    def _known(self) -> dict[str, dict[str, int | str]]:
        try:
            found = read_json(self.memory)
        except (FileNotFoundError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        names = {"size", "mtime_ns", "sha256"}
        return {
            key: one for key, one in found.items() if isinstance(one, dict) and names <= one.keys()
        }
