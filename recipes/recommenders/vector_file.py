"""Any recommender somebody already has: its vectors are read from files.

Rows are found by their keys, so the order of a file does not matter. Every window of every split
and every item must have exactly one vector.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recipes.about import About
from recipes.checksums import Checksums
from recipes.data.splits import SPLITS, SplitName
from recipes.data.tables import INTERACTIONS, PreparedData
from recipes.recommenders.recommender import VectorSource
from recipes.recommenders.vector_table import Kind, VectorTable, check_file, read_vectors

USERS, ITEMS = "recommender.user_vectors", "recommender.item_vectors"


class VectorFile(VectorSource):
    """Vectors from a file of users and a file of items, see `read_vectors` for their formats.

    The vector of a user holds for all windows of that user, that of a user and a position for the
    window whose target stands at that position of the user's sequence, from 0.
    """

    name = "file"
    summary = "vectors from files: any recommender that somebody already has"
    about = About(
        title="Vectors from files",
        meaning="the dot product of a user's and an item's vector, both read from files",
        order=35,
        ranks_by="dot product",
    )
    settings = ("user_vectors", "item_vectors")
    reads_history = False

    def check(self) -> None:
        """Refuse files that are not named, not there, or of another format."""
        check_file(USERS, self.config.user_vectors)
        check_file(ITEMS, self.config.item_vectors)

    @property
    def files(self) -> dict[str, str]:
        """The two files, by the field that names each."""
        users, items = self.config.user_vectors, self.config.item_vectors
        assert users is not None and items is not None  # see `check`
        return {USERS: users, ITEMS: items}

    def inputs(self, checksums: Checksums) -> dict[str, str]:
        """SHA-256 of both files."""
        return checksums.of_files({name: Path(path) for name, path in self.files.items()})

    @property
    def width(self) -> int:
        """Width of the first vector of each file, which must be the same."""
        users = read_vectors(USERS, self.files[USERS], "user", rows=1)
        items = read_vectors(ITEMS, self.files[ITEMS], "item", rows=1)
        _check_widths(users, items)
        return users.vectors.shape[1]

    def vectors(self, data: PreparedData, prepared: Path) -> tuple[dict[SplitName, Tensor], Tensor]:
        """Read both files, and find the vectors of every window and item in them."""
        users = read_vectors(USERS, self.files[USERS], "user")
        items = read_vectors(ITEMS, self.files[ITEMS], "item")
        _check_widths(users, items)
        item_rows = _Search(ITEMS, self.files[ITEMS], items, "item", prepared).find(
            np.arange(data.num_items)
        )
        search = _Search(USERS, self.files[USERS], users, "user", prepared)
        ids = np.concatenate([data.split(name).user_ids for name in SPLITS])
        positions = None if users.positions is None else _positions(data, prepared)
        user_rows = np.split(
            search.find(ids, positions), np.cumsum([len(data.split(name)) for name in SPLITS])[:-1]
        )
        found: dict[SplitName, Tensor] = {
            name: torch.from_numpy(users.vectors[rows])
            for name, rows in zip(SPLITS, user_rows, strict=True)
        }
        return found, torch.from_numpy(items.vectors[item_rows])


def _check_widths(users: VectorTable, items: VectorTable) -> None:
    widths = users.vectors.shape[1], items.vectors.shape[1]
    if widths[0] != widths[1]:
        raise ValueError(
            f"{USERS} has vectors of width {widths[0]} and {ITEMS} of {widths[1]}: a score is "
            "their dot product, so give both from the same recommender"
        )


def _positions(data: PreparedData, prepared: Path) -> np.ndarray:
    """The position of each window's target in its user's sequence, split after split: int64 [n]."""
    path = prepared / INTERACTIONS
    if not path.is_file():
        raise ValueError(
            f"{USERS} names positions, but the windows of this dataset came ready-made, and their "
            "positions are unknown: give one vector for each user"
        )
    return np.concatenate([data.positions(name) for name in SPLITS])


class _Search:
    """Finds rows of a table by key."""

    def __init__(
        self, field: str, file: str, table: VectorTable, kind: Kind, prepared: Path
    ) -> None:
        self.shown, self.file, self.table, self.kind = f"{field}={file!r}", file, table, kind
        self.names = _names(prepared, kind)
        """The source's ids by number; None where these are the numbers themselves."""
        self.numbers = self._numbers()

    def _numbers(self) -> np.ndarray:
        """Each row's user or item as a number of the prepared tables, -1 where there is none."""
        keys = self.table.keys
        if not pa.types.is_string(keys.type):
            return keys.to_numpy(zero_copy_only=False)
        if self.names is None:
            raise ValueError(
                f"{self.shown} names the column `{self.kind}`, but this dataset keeps no other ids "
                f"than the numbers of its tables: give these, in the column `{self.kind}_id`"
            )
        numbers, names = self.names
        place = pd.Index(np.asarray(names)).get_indexer(np.asarray(keys))
        return np.where(place < 0, -1, numbers[place])

    def find(self, ids: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """The row of each wanted vector: int64 [n].

        Args:
            ids: int64 [n], numbers of users or items.
            positions: int64 [n], if the vectors belong to users and positions.

        Raises:
            ValueError: A wanted vector is missing, or there are two.
        """
        distinct, span = np.unique(ids), 1 if positions is None else int(positions.max()) + 1
        wanted, _ = _keys(ids, positions, distinct, span)
        keys, known = _keys(self.numbers, self.table.positions, distinct, span)
        known[known] = np.isin(keys[known], wanted)
        rows = np.flatnonzero(known)
        if len(rows) < len(keys):
            print(
                f"[recommender file] {self.file}: {len(keys) - len(rows)} of {len(keys)} vectors "
                f"are of no {self._what(positions)} of these data, and are left out",
                flush=True,
            )
        rows = rows[np.argsort(keys[rows], kind="stable")]
        found = keys[rows]
        twice = np.flatnonzero(found[1:] == found[:-1])
        if len(twice):
            row = int(rows[twice[0]])
            told = self._told(int(self.numbers[row]), self.table.positions, row)
            raise ValueError(f"{self.shown} has two vectors of {told}: keep one")
        place = np.searchsorted(found, wanted)
        missing = np.flatnonzero(np.append(found, -1)[place] != wanted)
        if len(missing):
            at = int(missing[0])
            lacking, whole = len(np.unique(wanted[missing])), len(np.unique(wanted))
            raise ValueError(
                f"{self.shown} lacks the vectors of {lacking} of the {whole} "
                f"{self._what(positions)}s of these data, first that of "
                f"{self._told(int(ids[at]), positions, at)}: add them"
            )
        return rows[place]

    def _what(self, positions: np.ndarray | None) -> str:
        return self.kind if positions is None else "window"

    def _told(self, number: int, positions: np.ndarray | None, at: int) -> str:
        told = f"{self.kind} {number}"
        if self.names is not None:
            numbers, names = self.names
            told += f" ({names[int(np.flatnonzero(numbers == number)[0])]})"
        return told if positions is None else f"{told} at position {positions[at]}"


def _keys(
    ids: np.ndarray, positions: np.ndarray | None, distinct: np.ndarray, span: int
) -> tuple[np.ndarray, np.ndarray]:
    """One number for each id, or id and position, and whether it can be among the wanted ones.

    Args:
        ids: int64 [n].
        positions: int64 [n], or None.
        distinct: The wanted ids, each once, in ascending order.
        span: All wanted positions are below it.
    """
    rank = np.minimum(np.searchsorted(distinct, ids), len(distinct) - 1)
    known = distinct[rank] == ids
    if positions is None:
        return rank, known
    known &= (positions >= 0) & (positions < span)
    return rank * span + np.clip(positions, 0, span - 1), known


def _names(prepared: Path, kind: Kind) -> tuple[np.ndarray, pa.Array] | None:
    """The numbers of users or items, and the ids that they have in the source."""
    path = prepared / f"{kind}s.parquet"
    if not path.is_file() or "key" not in pq.read_schema(path).names:
        return None
    table = pq.read_table(path, columns=[f"{kind}_id", "key"])
    names = table["key"].cast(pa.string()).combine_chunks()
    return table[f"{kind}_id"].to_numpy(), names
