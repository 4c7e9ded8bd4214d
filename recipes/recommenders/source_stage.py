"""Stage `recommender` of a source of vectors: it writes what a trained network's stage writes."""

from collections.abc import Mapping
from pathlib import Path

from recipes.artifacts import write_tensors
from recipes.checksums import Checksums
from recipes.data.tables import PreparedData
from recipes.recommenders.recommender import VectorSource
from recipes.records import Stage

TABLES = ("examples.parquet", "items.parquet", "interactions.parquet", "users.parquet")
"""Prepared tables that a source may read; not every dataset has the last two."""


def source_stage(source: VectorSource, prepared: Mapping[str, str], checksums: Checksums) -> Stage:
    """The stage as a record describes it: everything that determines the vectors.

    Args:
        source: The source. Its settings are left out, as a file's location does not matter.
        prepared: Checksums of the prepare stage's files.
        checksums: Computes those of the source's own files.

    Raises:
        FileNotFoundError: A file of the source is not there.
    """
    read = {name: prepared[name] for name in TABLES if name in prepared}
    read |= source.inputs(checksums)
    return Stage(f"recommender {source.name}", {"name": source.name}, read, source.version)


def write_vectors(source: VectorSource, data: PreparedData, prepared: Path, folder: Path) -> None:
    """Write the vectors of a source.

    Files:
        representations.safetensors: `train`, `val` and `test`, float32 [rows, d] each.
        items.safetensors: `embeddings`, float32 [num_items, d].

    Args:
        source: The source.
        data: The prepared tables as arrays.
        prepared: The folder of these tables.
        folder: The stage's folder, into which the files are written.

    Raises:
        ValueError: A vector is missing or cannot be used.
    """
    users, items = source.vectors(data, prepared)
    write_tensors(folder / "representations.safetensors", {name: users[name] for name in users})
    write_tensors(folder / "items.safetensors", {"embeddings": items})
