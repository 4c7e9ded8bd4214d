"""Figures that others published, which a study puts beside its own.

    published:
      source: a page or paper
      where: {prepare.ties: stable}
      counts: {users: 943, items: 1349, interactions: 99287}
      figures:
        sasrec: {hit_ratio@10/ranking: 0.1198}

`where` names the cell whose figures are comparable; `counts` are compared with the cell's data, and
`figures` with its arms, by their names. Several sources, or figures of several cells, are a list of
such blocks. Where another language model or protocol made them, `same_setting: false` says so: they
then stand beside ours, without a count of standard errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from recipes.type_errors import worded


@dataclass(frozen=True)
class Published:
    """Published figures and where they come from."""

    source: str
    """Where they were published, in Markdown."""
    figures: dict[str, dict[str, float]]
    """Arm -> metric key -> value."""
    label: str = "published"
    """Heading of their column, where they are not of the same setting."""
    same_setting: bool = True
    """Whether ours should reproduce them: the same data, protocol and kind of model."""
    where: dict[str, Any] = field(default_factory=dict)
    """Values of the varied fields in the comparable cell."""
    notes: list[str] = field(default_factory=list)
    """In what the published training or evaluation differs from ours, in Markdown."""
    counts: dict[str, int] = field(default_factory=dict)
    """Published statistics of the data, by their names in the manifest: users, items,
    interactions."""


COUNTS = ("users", "items", "interactions")


def all_published(
    value: Any,
    place: str,
    cells: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    metrics: Sequence[str],
) -> tuple[Published, ...]:
    """Read the section `published` of a study: nothing, a block or a list of blocks.

    The arguments and errors are those of `published_from`.
    """
    blocks = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(published_from(block, place, cells, arms, metrics) for block in blocks)


def published_from(
    value: Any,
    place: str,
    cells: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    metrics: Sequence[str],
) -> Published:
    """Read one block of published figures.

    Args:
        value: The block.
        place: Names the study's file in messages.
        cells: For each cell, its values of the varied fields.
        arms: Names of the arms.
        metrics: Keys of the metrics that the study measures.

    Raises:
        ValueError: A field is unknown or missing or has a wrong type, `where` names no cell, a
            figure's arm or metric is not among the study's, or a figure is no share.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Published)
    if not isinstance(value, dict):
        raise ValueError(f"{place}: published must consist of fields, not {value!r}")
    known = [one.name for one in fields(Published)]
    for name in value:
        if name not in known:  # which the parser would leave out
            raise ValueError(f"{place}: published.{name}: choose from {_words(known)}")
    try:
        parsed = parser.parse_object(value)
    except ArgumentError as error:
        raise ValueError(f"{place}: published: {worded(error.message)}") from error
    found = Published(**vars(parsed))
    if not any(dict(cell) == found.where for cell in cells):
        raise ValueError(f"{place}: published.where={found.where!r} is no cell of this study")
    for arm, figures in found.figures.items():
        if arm not in arms:
            raise ValueError(
                f"{place}: published.figures.{arm}: the study has no such arm, but {_words(arms)}"
            )
        for key, figure in figures.items():
            name = f"{place}: published.figures.{arm}.{key}"
            if key not in metrics:
                raise ValueError(
                    f"{name}: the study measures no such metric, but {_words(metrics)}"
                )
            if not 0 <= figure <= 1:
                raise ValueError(f"{name}={figure} is no share: write 4.4 % as 0.044")
    for name in found.counts:
        if name not in COUNTS:
            raise ValueError(f"{place}: published.counts.{name}: choose from {', '.join(COUNTS)}")
    return found


def _words(names: Sequence[str]) -> str:
    return ", ".join(names)
