"""A file of vectors, Parquet or safetensors, with the keys of users or items they belong to."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from recipes.artifacts import reading

Kind = Literal["user", "item"]
ENDINGS = (".parquet", ".safetensors")
REMEDY = (
    "write Parquet or safetensors, such as `safetensors.torch.save_file({'users': vectors, "
    "'user_ids': ids}, 'users.safetensors')` and `save_file({'items': vectors}, "
    "'items.safetensors')`"
)


@dataclass(frozen=True)
class VectorTable:
    """n vectors and what they belong to, in the order of the file."""

    keys: pa.Array
    """int64 [n], the numbers of the prepared tables; or strings, the ids of the source."""

    positions: np.ndarray | None
    """int64 [n], the place of the window's target among all items of its user, from 0. None where
    a user has one vector, and for items."""

    vectors: np.ndarray
    """float32 [n, d], finite."""


def check_file(field: str, name: str | None) -> None:
    """Refuse a file of vectors that is not named, not there, or of another format.

    Args:
        field: Name of the field that names the file.
        name: Its value.

    Raises:
        ValueError: It names no file, or one that is neither Parquet nor safetensors.
        FileNotFoundError: There is no such file.
    """
    if name is None:
        raise ValueError(
            f"{field} names no file, and the recommender `file` reads one of users and one of "
            f"items: {REMEDY}"
        )
    if Path(name).suffix not in ENDINGS:
        raise ValueError(
            f"{field}={name!r} ends neither in .parquet nor in .safetensors; other formats, such "
            f"as pickles, are not read: {REMEDY}"
        )
    if not Path(name).is_file():
        raise FileNotFoundError(f"{field}={name!r}: there is no such file")


def read_vectors(field: str, name: str, kind: Kind, rows: int | None = None) -> VectorTable:
    """Read a file of vectors.

    A Parquet file has a row for each vector: the column `user_id` or `item_id` holds the number of
    the prepared tables, or else `user` or `item` the id of the source; users may have a column
    `position`; and the vector is a list in the column `vector`, or the columns `v0`, `v1`, ... A
    safetensors file has the tensors `users` [n, d], `user_ids` [n] and, if wanted, `positions`
    [n]; or `items` [num_items, d], by item id. A file of users may hold the items too.

    Args:
        field: Name of the field that names the file, for messages.
        name: The file.
        kind: Whose vectors to read.
        rows: Read only so many of the first rows; None reads all.

    Raises:
        ValueError: The file is damaged, lacks a column or tensor, or holds a value that cannot be
            used; the message names the field, the file and what is wrong.
    """
    path, shown = Path(name), f"{field}={name!r}"
    if path.suffix == ".parquet":
        with reading(path, "Parquet table"):
            table = _rows_of(path, kind, rows)
        found = _of_table(table, kind, shown)
    else:
        found = _of_tensors(_tensors(path, kind, rows, shown), kind, shown)
    if not found.vectors.size:
        raise _empty(shown)
    bad = np.flatnonzero(~np.isfinite(found.vectors).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{shown} holds NaN or infinity in {len(bad)} of {len(found.vectors)} vectors, first "
            f"in that of {kind} {found.keys[bad[0]]}: leave out what has no vector"
        )
    return found


# ------------------------------------------------------------------ Parquet


def _rows_of(path: Path, kind: Kind, rows: int | None) -> pa.Table:
    """The columns that `read_vectors` knows; of a large file only the first rows, if so wanted."""
    file = pq.ParquetFile(path)
    names = [one for one in file.schema_arrow.names if _is_known(one, kind)]
    if rows is None:
        return file.read(columns=names)
    batches = islice(file.iter_batches(batch_size=rows, columns=names), 1)
    schema = pa.schema([file.schema_arrow.field(one) for one in names])
    return pa.Table.from_batches(batches, schema)


def _is_known(column: str, kind: Kind) -> bool:
    return column in (kind, f"{kind}_id", "position", "vector") or _place(column) is not None


def _place(column: str) -> int | None:
    """The place of the column's values in their vectors, for `v0`, `v1`, ..."""
    digits = column.removeprefix("v")
    return int(digits) if digits != column and digits.isascii() and digits.isdecimal() else None


def _empty(shown: str) -> ValueError:
    return ValueError(f"{shown} holds no vectors: {REMEDY}")


def _of_table(table: pa.Table, kind: Kind, shown: str) -> VectorTable:
    if not len(table):
        raise _empty(shown)
    names = table.column_names
    given = [one for one in (f"{kind}_id", kind) if one in names]
    if len(given) != 1:
        raise ValueError(
            f"{shown} needs one of the columns `{kind}_id`, the number in the prepared tables, and "
            f"`{kind}`, the id in the source; it has {' and '.join(given) or 'neither'}"
        )
    column, known = table[given[0]], f"{shown}: column `{given[0]}`"
    whole = pa.types.is_integer(column.type)
    if given[0] != kind and not whole:
        raise ValueError(f"{known} is of type {column.type}: write whole numbers")
    if given[0] == kind and pa.types.is_floating(column.type):
        raise ValueError(f"{known} is of type {column.type}: write texts or whole numbers")
    keys = column.cast(pa.string() if given[0] == kind else pa.int64()).combine_chunks()
    if keys.null_count:
        raise ValueError(f"{known} is empty in {keys.null_count} rows: fill them, or drop the rows")
    return VectorTable(keys, _positions(table, kind, shown), _matrix(table, shown))


def _positions(table: pa.Table, kind: Kind, shown: str) -> np.ndarray | None:
    if kind == "item" or "position" not in table.column_names:
        return None
    column = table["position"]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(
            f"{shown}: column `position` is of type {column.type}, with {column.null_count} empty "
            "rows: write a whole number in each row, the target's place in the user's sequence"
        )
    return column.to_numpy().astype(np.int64)


def _matrix(table: pa.Table, shown: str) -> np.ndarray:
    """The vectors of a table: float32 [rows, d]."""
    if "vector" in table.column_names:
        return _listed(table["vector"], shown)
    numbered = {place: one for one in table.column_names if (place := _place(one)) is not None}
    columns = [numbered.get(place, "") for place in range(len(numbered))]
    if not columns or "" in columns:
        raise ValueError(
            f"{shown} needs a column `vector` of lists, or columns v0, v1, .. without a gap; it "
            f"has {', '.join(table.column_names)}"
        )
    matrix = np.empty((len(table), len(columns)), np.float32)
    for place, name in enumerate(columns):
        matrix[:, place] = _numbers(table[name], f"{shown}: column `{name}`")
    return matrix


def _listed(column: pa.ChunkedArray, shown: str) -> np.ndarray:
    shown = f"{shown}: column `vector`"
    if not any(
        kind(column.type)
        for kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    ):
        raise ValueError(f"{shown} is of type {column.type}: write lists of numbers")
    if column.null_count:
        raise ValueError(
            f"{shown} is empty in {column.null_count} rows: fill them, or drop the rows"
        )
    lists = column.cast(pa.large_list(column.type.value_type)).combine_chunks()
    widths = np.unique(np.diff(lists.offsets.to_numpy()))
    if len(widths) > 1:
        raise ValueError(
            f"{shown} has vectors of widths {', '.join(map(str, widths))}: give every row one of "
            "the same width"
        )
    values = _numbers(lists.flatten(), shown)
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, 0)


def _numbers(column: pa.Array | pa.ChunkedArray, shown: str) -> np.ndarray:
    """Values as float32; an empty one becomes NaN, which is refused with its key."""
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise ValueError(f"{shown} holds values of type {column.type}: write numbers")
    values = np.asarray(column)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
        return values.astype(np.float32, copy=False)


# ------------------------------------------------------------------ safetensors


def _tensors(path: Path, kind: Kind, rows: int | None, shown: str) -> dict[str, np.ndarray]:
    """The tensors of users or items in a file, as arrays."""
    wanted = {"user": ("users", "user_ids", "positions"), "item": ("items",)}[kind]
    needed = wanted[:2]
    with reading(path, "safetensors file"), safe_open(path, "pt") as file:
        names = set(file.keys())
        found = {
            name: (file.get_tensor(name) if rows is None else file.get_slice(name)[:rows])
            for name in wanted
            if name in names
        }
    for name in needed:
        if name not in found:
            raise ValueError(
                f"{shown} has no tensor `{name}`, but "
                f"{', '.join(sorted(names)) or 'none'}: {REMEDY}"
            )
    for name, tensor in found.items():
        is_vector = name == wanted[0]
        whole = not (tensor.is_floating_point() or tensor.is_complex())
        if tensor.dim() != (2 if is_vector else 1) or whole is is_vector:
            raise ValueError(
                f"{shown}: tensor `{name}` is {tensor.dtype} {list(tensor.shape)}: write "
                f"{'floats [n, d]' if is_vector else 'int64 [n]'}"
            )
        if len(tensor) != len(found[wanted[0]]):
            raise ValueError(
                f"{shown}: tensor `{name}` has {len(tensor)} entries for "
                f"{len(found[wanted[0]])} vectors: write one for each"
            )
    return {
        name: (tensor.float() if name == wanted[0] else tensor.long()).numpy()
        for name, tensor in found.items()
    }


def _of_tensors(tensors: dict[str, np.ndarray], kind: Kind, shown: str) -> VectorTable:
    vectors = tensors["users" if kind == "user" else "items"]
    ids = tensors["user_ids"] if kind == "user" else np.arange(len(vectors))
    return VectorTable(pa.array(ids), tensors.get("positions"), vectors)
