"""Figures that others published, which a study puts beside its own.

    published:
      source: a page or paper
      where: {prepare.ties: stable}
      counts: {users: 943, items: 1349, interactions: 99287}
      figures:
        sasrec: {hit_ratio@10/ranking: 0.1198}

`where` names the cell whose figures are comparable; `counts` are compared with the cell's data, and
`figures` with its arms, by their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser


@dataclass(frozen=True)
class Published:
    """Published figures and where they come from."""

    source: str
    """Where they were published, in Markdown."""
    figures: dict[str, dict[str, float]]
    """Arm -> metric key -> value."""
    where: dict[str, Any] = field(default_factory=dict)
    """Values of the varied fields in the comparable cell."""
    notes: list[str] = field(default_factory=list)
    """In what the published training or evaluation differs from ours, in Markdown."""
    counts: dict[str, int] = field(default_factory=dict)
    """Published statistics of the data, by their names in the manifest: users, items,
    interactions."""


COUNTS = ("users", "items", "interactions")


def published_from(
    value: Any, place: str, cells: Sequence[Mapping[str, Any]], arms: Sequence[str]
) -> Published:
    """Read the section `published` of a study.

    Args:
        value: The section.
        place: Names the study's file in messages.
        cells: For each cell, its values of the varied fields.
        arms: Names of the arms.

    Raises:
        ValueError: A field is unknown or missing or has a wrong type, `where` names no cell, or a
            figure's arm is not among the study's.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Published)
    if not isinstance(value, dict):
        raise ValueError(f"{place}: published must consist of fields, not {value!r}")
    try:
        parsed = parser.parse_object(value)
    except ArgumentError as error:
        raise ValueError(f"{place}: published: {error.message}") from error
    found = Published(**vars(parsed))
    if not any(dict(cell) == found.where for cell in cells):
        raise ValueError(f"{place}: published.where={found.where!r} is no cell of this study")
    for arm in found.figures:
        if arm not in arms:
            raise ValueError(
                f"{place}: published.figures.{arm}: the study has no such arm, but "
                f"{', '.join(arms)}"
            )
    for name in found.counts:
        if name not in COUNTS:
            raise ValueError(f"{place}: published.counts.{name}: choose from {', '.join(COUNTS)}")
    return found
