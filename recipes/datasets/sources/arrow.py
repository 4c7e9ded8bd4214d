"""Typed tables: Parquet files, and whatever the library `datasets` reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.datasets.sources.source import Column, Source

if TYPE_CHECKING:
    from datasets import Dataset


class Parquet(Source):
    """A Parquet file; its rows are numbered from 1 in messages."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.path = path

    def columns(self) -> list[str]:
        """The names of the file's columns."""
        return self._schema().names

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Read some columns in the file's types; text is dictionary-encoded."""
        schema = self._schema()
        texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
        try:
            with pq.ParquetFile(self.path, read_dictionary=texts) as file:
                table = file.read(columns=list(names))
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(error) from error
        if not len(table):
            raise ValueError(f"{self.path} has no rows")
        return {
            name: Column(name, table[name], lambda row: f"{self.path}, row {row + 1}")
            for name in names
        }

    def _schema(self) -> pa.Schema:
        try:
            return pq.read_schema(self.path)
        except pa.ArrowInvalid as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path} is no Parquet file, or cut off ({error}): write it again")


class Loaded(Source):
    """A data set that the library `datasets` has loaded; its rows are numbered from 0, as there.

    Args:
        name: What messages call it.
        dataset: One split.
    """

    def __init__(self, name: str, dataset: "Dataset") -> None:
        self.name = name
        self.dataset = dataset

    def columns(self) -> list[str]:
        """The names of the data set's columns."""
        return self.dataset.column_names

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Read some columns in their types."""
        if not len(self.dataset):
            raise ValueError(f"{self.name} has no rows")
        table = self.dataset.select_columns(list(names)).with_format("arrow")[:]
        return {
            name: Column(name, table[name], lambda row: f"{self.name}, row {row}") for name in names
        }
