"""Registries of what is chosen by name: datasets, recommenders, methods."""

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to entries, in the order in which they are listed.

    Args:
        kind: What the entries are, for error messages, such as `dataset`.
        entries: Objects with a unique `name` and a one-line `summary`.
    """

    def __init__(self, kind: str, *entries: T) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {_name(entry): entry for entry in entries}
        if len(self._entries) < len(entries):
            raise ValueError(f"two entries of the {kind} registry have the same name")

    def __getitem__(self, name: str) -> T:
        """The entry of this name.

        Raises:
            UnknownNameError: No entry has this name.
        """
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, list(self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _name(entry: Any) -> str:
    return entry.name


class UnknownNameError(KeyError, ValueError):
    """A name that no entry of a registry has."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(f"there is no {kind} {name!r}; known are {', '.join(known)}")

    def __str__(self) -> str:
        return str(self.args[0])
