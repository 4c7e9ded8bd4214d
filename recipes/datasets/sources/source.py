"""The interface of a source: named columns, and where each row stands."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

SHOWN = 60
"""Letters of a value that a message shows."""


@dataclass(frozen=True)
class Column:
    """A column of n rows, as it was read."""

    name: str
    values: pa.ChunkedArray
    """Text (plain or dictionary-encoded) from a file of text; any type from Parquet."""
    where: Callable[[int], str]
    """Row number from 0 -> the file and the line, for a message."""

    def refusal(self, row: int, remedy: str) -> ValueError:
        """The error of a value that cannot be used."""
        value = self.values[row].as_py()
        told = "is empty" if value in (None, "") else f"holds {shown(value)}"
        return ValueError(f"{self.where(row)}: column {self.name!r} {told}: {remedy}")

    def refused_type(self, remedy: str) -> ValueError:
        """The error of a column whose type cannot be used; its first row is named."""
        row = next((n for n, value in enumerate(self.values) if value.is_valid), 0)
        told = f"holds values of type {self.values.type}, such as {shown(self.values[row].as_py())}"
        return ValueError(f"{self.where(row)}: column {self.name!r} {told}: {remedy}")


def shown(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}.."


class Source(ABC):
    """A table that can be read column by column."""

    name: str
    """What messages call it: a path, or a data set's name."""
    has_header: bool = False
    """Whether the columns' names are the first line of a text file."""

    @abstractmethod
    def columns(self) -> list[str]:
        """The names of all columns, in order; one may stand twice.

        Raises:
            ValueError: The source is empty or not of its kind.
        """

    @abstractmethod
    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Read some columns, each of which has as many rows as the source.

        Args:
            names: Names of columns, each of which stands once in `columns()`.

        Raises:
            ValueError: A row cannot be read; the message names the file, the line and the remedy.
        """
