"""CSV and TSV with a header, read as text by pyarrow.

pyarrow reads fast, but forgives quotes that do not close and names no lines. So whenever it fails,
and wherever a file has quotes at all, Python's `csv` in its strict mode reads the file too: it
finds the line, and both must find the same number of rows.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from recipes.datasets.sources.source import Column, Source
from recipes.datasets.sources.text_files import (
    DAMAGED,
    damaged,
    is_utf8,
    open_bytes,
    open_text,
    undecodable,
)

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
BLOCK = 2**23
"""Bytes that are parsed at once; longer rows are refused."""
TEXT = pa.dictionary(pa.int32(), pa.string())
QUOTES = (
    'write a value with separators, quotes or line breaks in quotes, and a quote in it twice: ""'
)


class Delimited(Source):
    """A file of separated values.

    Args:
        path: The file; one that ends in .gz is unpacked.
        encoding: Its encoding.
        separator: What separates values; None finds it in the header.
    """

    has_header = True

    def __init__(self, path: Path, encoding: str, separator: str | None = None) -> None:
        self.name = str(path)
        self.path = path
        self.encoding = encoding
        self._given = separator
        self._separator: str | None = separator
        self._header: list[str] | None = None

    @property
    def separator(self) -> str:
        """What separates values."""
        if self._separator is None:
            with open_text(self.path, self.encoding) as file:
                header = next((line for line in file if line.strip("\r\n")), "")
            bare = "".join(header.split('"')[::2])
            self._separator = max(SEPARATORS, key=bare.count)
        return self._separator

    def columns(self) -> list[str]:
        """The header's names, without white space around them."""
        if self._header is None:
            first = next(self._records(), None)
            if first is None:
                raise ValueError(
                    f"{self.path} is empty: it needs a header, such as user,item,time,title, and "
                    "rows below it"
                )
            self._header = [name.strip().removeprefix("\ufeff") for name in first[1]]
        return self._header

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Read some columns as text."""
        header = self.columns()
        table = self._parsed([f"f{header.index(name)}" for name in names])
        if self._has_quotes():
            found = sum(1 for _ in self._records())
            if found != len(table):
                raise ValueError(
                    f"{self.path}: {found} rows or {len(table)}, as one reads its quotes: {QUOTES}"
                )
        if len(table) < 2:
            raise ValueError(f"{self.path} has a header and no rows")
        columns = table.slice(1).columns
        return {
            name: Column(name, values, self._where)
            for name, values in zip(names, columns, strict=True)
        }

    def check(self) -> None:
        """Refuse quotes that do not match, and rows with other values than the header has.

        Raises:
            ValueError: There is such a row; its line is named.
        """
        for _ in self._records():
            pass

    def _parsed(self, columns: list[str]) -> pa.Table:
        """The columns f0, f1, .., the header being the first row."""
        utf8 = is_utf8(self.encoding)
        try:
            with open_bytes(self.path) as file:
                return arrow_csv.read_csv(
                    file,
                    arrow_csv.ReadOptions(
                        autogenerate_column_names=True,
                        block_size=BLOCK,
                        encoding="utf8" if utf8 else self.encoding,
                    ),
                    arrow_csv.ParseOptions(delimiter=self.separator, newlines_in_values=True),
                    arrow_csv.ConvertOptions(
                        include_columns=columns, column_types=dict.fromkeys(columns, TEXT)
                    ),
                )
        except DAMAGED as error:
            raise damaged(self.path) from error
        except UnicodeError as error:
            raise undecodable(self.path, self.encoding) from error
        except pa.ArrowInvalid as error:
            self.check()  # a fault that Python finds too is raised with its line
            raise ValueError(f"{self.path} cannot be read as CSV ({error}): {QUOTES}") from error

    def _has_quotes(self) -> bool:
        with open_bytes(self.path) as file:
            return any(b'"' in block for block in iter(lambda: file.read(BLOCK), b""))

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Line number from 1 and values of each record, the header among them.

        Raises:
            ValueError: A record has quotes that do not match, or other values than the header.
        """
        width, line = 0, 1
        with open_text(self.path, self.encoding) as file, _values_of_any_length():
            reader = csv.reader(file, delimiter=self.separator, strict=True)
            try:
                for values in reader:
                    if values:
                        width = width or len(values)
                        if len(values) != width:
                            raise self._other_width(line, len(values), width)
                        yield line, values
                    line = reader.line_num + 1
            except csv.Error as error:
                unclosed = "end of data" in str(error)
                what = "a quote opens that is never closed" if unclosed else "quotes do not match"
                raise ValueError(f"{self.path}, line {line}: {what}: {QUOTES}") from error

    def _other_width(self, line: int, found: int, width: int) -> ValueError:
        return ValueError(
            f"{self.path}, line {line}: {found} values, where the header has {width}, separated by "
            f"{SEPARATORS[self.separator]}: complete the row, or put a value with separators in "
            "quotes"
        )

    def _where(self, row: int) -> str:
        records = self._records()
        next(records)  # the header
        line = next(line for number, (line, _) in enumerate(records) if number == row)
        return f"{self.path}, line {line}"


class _values_of_any_length:
    """Lifts the limit on a value's length, which is `csv`'s for the whole process."""

    def __enter__(self) -> None:
        self.before = csv.field_size_limit(sys.maxsize)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self.before)
