"""Files that are written whole or not at all: JSON, Parquet, safetensors."""

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

SETTLED_NS = 2_000_000_000
"""A file that has not changed for so long (ns) bears another time when it changes again."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Create a folder if it is missing, for a block that fills it.

    What was created, parents too, is removed again if the block leaves it empty.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in made:
            if not path.is_dir() or any(path.iterdir()):
                break
            path.rmdir()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn a failure to write into an OSError that names `path` and the cause.

    The libraries below say neither: an OSError of a write has no file name, and safetensors and
    torch raise errors of their own.
    """
    try:
        yield
    except OSError as error:
        named = error.filename is not None and not Path(error.filename).name.startswith(".")
        if error.errno is None or named:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except (SafetensorError, RuntimeError) as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is not None:
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            raise OSError(errno.EIO, "cannot be written, is the disk full?", str(path)) from error
        raise


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn a failure to read a file's content into a ValueError that names the file and its kind.

    Raises:
        ValueError: The file is cut off, empty, or of another kind.
    """
    try:
        yield
    except (ValueError, EOFError, SafetensorError, pa.ArrowException) as error:
        raise _no(kind, path, error) from error
    except OSError as error:  # pyarrow's, for a content that it cannot read
        if error.errno is not None:
            raise
        raise _no(kind, path, error) from error


def _no(kind: str, path: Path, error: Exception) -> ValueError:
    why = " ".join(str(error).split())
    return ValueError(f"{path} is damaged, or no {kind}: {why}")


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON. NaN is refused, since JSON has no such value."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    with reading(path, "JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    with written_whole(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_parts(path: Path, parts: Iterable[pa.Table]) -> None:
    """Write a table that is made part by part: one part is written while the next one is made.

    Integers, also those in lists, are stored as differences packed into as few bits as they need,
    which takes half the time of a dictionary of their values.

    Args:
        path: The Parquet file.
        parts: At least one part; all have the same schema.
    """
    rest = iter(parts)
    first = next(rest)
    integers, others = _columns(first.schema)
    packed = dict.fromkeys(integers, "DELTA_BINARY_PACKED")
    with (
        written_whole(path) as temporary,
        pq.ParquetWriter(
            temporary,
            first.schema,
            use_dictionary=others,  # pyright: ignore[reportArgumentType]  # names are taken, too
            column_encoding=packed,
        ) as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        written = thread.submit(writer.write_table, first)
        for part in rest:
            written.result()
            written = thread.submit(writer.write_table, part)
        written.result()


def _columns(schema: pa.Schema) -> tuple[list[str], list[str]]:
    """The columns of integers or of lists of them, by their names in the file, and the others."""
    integers, others = [], []
    for field in schema:
        inner = pa.types.is_list(field.type)
        kind = field.type.value_type if inner else field.type
        name = f"{field.name}.list.element" if inner else field.name
        (integers if pa.types.is_integer(kind) else others).append(name)
    return integers, others


def read_table(path: Path) -> pd.DataFrame:
    with reading(path, "Parquet table"):
        return pd.read_parquet(path)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with written_whole(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with reading(path, "safetensors file"):
        return load_file(path)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def state_of(path: Path) -> tuple[int, ...] | None:
    """What the system says of a file's content: it changes whenever the content does.

    The time of change is among it, which no program can set, unlike the time of modification.

    Returns:
        Size, times of modification and change in ns, and inode. None if the file has changed a
        moment ago: the next change might then bear the same time.
    """
    found = path.stat()
    settled = time.time_ns() - found.st_ctime_ns > SETTLED_NS
    state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    return state if settled else None


def known_sha256(path: Path) -> str:
    """SHA-256 of a file, which this process computes once for each state of the file."""
    state = state_of(path)
    return sha256(path) if state is None else _sha256_of_state(path, state)


@lru_cache(maxsize=2**16)
def _sha256_of_state(path: Path, state: tuple[int, ...]) -> str:
    return sha256(path)
