"""What `prepare.source` stands for: a file, a folder or the name of a data set."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recipes.datasets.sources.arrow import Parquet
from recipes.datasets.sources.delimited import Delimited
from recipes.datasets.sources.json_lines import JsonLines
from recipes.datasets.sources.loading import SAVED, cached_files, loaded, saved
from recipes.datasets.sources.source import Source
from recipes.datasets.sources.text_files import GZIP
from recipes.experiment import CustomConfig

READERS: dict[str, Callable[[Path, str], Source]] = {
    ".csv": Delimited,
    ".tsv": lambda path, encoding: Delimited(path, encoding, "\t"),
    ".tab": lambda path, encoding: Delimited(path, encoding, "\t"),
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonLines,
    ".parquet": lambda path, _: Parquet(path),
    ".pq": lambda path, _: Parquet(path),
}
PACKED = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json")
"""Endings that may be followed by .gz."""
PICKLES = (".pkl", ".pickle", ".df", ".p")
PICKLE = re.compile(rb"\x80[\x02-\x05]")
CONTENTS = {b"PAR1": ".parquet", b"\x1f\x8b": GZIP}
"""First bytes of files whose ending must be this one."""
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""A name on the hub."""
TITLES = re.compile(r"(meta|items|titles)", re.IGNORECASE)
"""How the name of a file of titles begins, beside the file of interactions."""
EXAMPLE = "--prepare.dataset custom --prepare.source interactions.csv"


@dataclass(frozen=True)
class Opened:
    """A source, and the one of the items' titles if they stand beside it."""

    interactions: Source
    titles: Source | None = None


def files_of(source: Path | None) -> dict[str, Path]:
    """The files of a source, by name: those that decide what is read.

    Raises:
        FileNotFoundError: No source is given, or there is none.
        ValueError: It is not of a kind that is read.
    """
    if source is None:
        raise FileNotFoundError(
            f"prepare.source is missing: name a file of (user, item, time, title): {EXAMPLE}"
        )
    if source.is_dir():
        tables_of(source)
        return {
            path.relative_to(source).as_posix(): path
            for path in sorted(source.rglob("*"))
            if path.is_file() and not _hidden(path.relative_to(source))
        }
    if source.is_file():
        reader_of(source)
        return {source.name: source}
    if not _may_be_a_name(source):
        raise FileNotFoundError(f"prepare.source={str(source)!r}: there is no such file or folder")
    return cached_files(str(source))


def open_source(source: Path, config: CustomConfig) -> Opened:
    """Open a source that `files_of` has accepted.

    A folder with two files, one of which is named meta.., items.. or titles.., holds interactions
    and the items' titles. One with a single file is that file. Other folders are read by
    `datasets`.

    Raises:
        ValueError: It cannot be opened.
    """
    if source.is_file():
        return Opened(reader_of(source)(source, config.encoding))
    if not source.is_dir():
        return Opened(loaded(str(source), config.split))
    if _is_saved(source):
        return Opened(saved(source, config.split))
    tables = tables_of(source)
    if len(tables) == 1:
        return open_source(tables[0], config)
    pair = _pair(tables)
    if pair is not None:
        first, second = (reader_of(path)(path, config.encoding) for path in pair)
        return Opened(first, second)
    readers = {str(_ending(path)): path for path in tables}
    if len(readers) > 1:
        raise ValueError(
            f"{source} holds tables of several kinds, {' and '.join(sorted(readers))}: pass one of "
            "the files, or name a file of titles titles.csv or the like"
        )
    return Opened(loaded(str(source), config.split, _written_alike(tables, config.encoding)))


def reader_of(path: Path) -> Callable[[Path, str], Source]:
    """What reads a file, by its ending.

    Raises:
        ValueError: The ending is unknown, is not that of the content, or the file is a pickle.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix in PICKLES or PICKLE.match(start):
        raise ValueError(
            f"{path} is a pickle, which can run any code and is never loaded. Where it is trusted, "
            f"convert it: python -c \"import pandas as p; p.read_pickle('{path.name}')"
            ".to_parquet('interactions.parquet')\""
        )
    for content, ending in CONTENTS.items():
        fits = path.suffix == ending or (ending == ".parquet" and path.suffix == ".pq")
        if start.startswith(content) and not fits:
            raise ValueError(f"{path} has the content of a {ending} file: rename it {ending}")
    ending = _ending(path)
    if ending is None:
        raise ValueError(
            f"{path} has an ending that says nothing of its content: name it {', '.join(READERS)}, "
            "or .csv.gz and the like, as it is"
        )
    return READERS[ending]


def tables_of(folder: Path) -> list[Path]:
    """The tables in a folder and below.

    Raises:
        ValueError: There are none, or pickles alone.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _hidden(path.relative_to(folder))
    ]
    found = [path for path in files if _ending(path) is not None]
    if not (found or _is_saved(folder)):
        for path in files:
            if path.suffix in PICKLES:
                reader_of(path)
        raise ValueError(
            f"{folder} holds no table: pass a file, or a folder with files {', '.join(READERS)}"
        )
    return found


def _written_alike(tables: list[Path], encoding: str) -> Delimited | None:
    """The first of several files of separated values, after all have been checked; None of others.

    `datasets` forgives quotes that do not match and rows that are too short, and names no line.

    Raises:
        ValueError: A file cannot be read, or has other columns or separators than the first.
    """
    first: Delimited | None = None
    for path in tables:
        reader = reader_of(path)(path, encoding)
        if not isinstance(reader, Delimited):
            return None
        reader.check()
        first = first or reader
        one, other = (sorted(found.columns()) for found in (reader, first))
        if one != other or reader.separator != first.separator:
            raise ValueError(
                f"{path}, line 1: the columns {', '.join(one)}, where {first.path} has "
                f"{', '.join(other)}, or another separator: write all files of a folder alike, or "
                "pass one of them"
            )
    return first


def _pair(tables: list[Path]) -> tuple[Path, Path] | None:
    """Interactions and titles, if these two are all there is."""
    second = [path for path in tables if TITLES.match(path.name)]
    first = [path for path in tables if path not in second]
    return (first[0], second[0]) if (len(first), len(second)) == (1, 1) else None


def _ending(path: Path) -> str | None:
    packed = path.suffix.lower() == GZIP
    ending = (path.with_suffix("") if packed else path).suffix.lower()
    return ending if ending in (PACKED if packed else READERS) else None


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)


def _may_be_a_name(source: Path) -> bool:
    return NAME.fullmatch(source.as_posix()) is not None and _ending(source) is None


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
