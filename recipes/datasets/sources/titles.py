"""The title of each item: its first that is not empty, or its id."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recipes.datasets.ordering import order_by, run_starts
from recipes.datasets.sources.distinct import distinct
from recipes.datasets.sources.source import Column, shown

DOUBTFUL = 0.5
"""A guessed column gives no titles if more than this share of the items has several."""


@dataclass(frozen=True)
class Titles:
    """Titles of k items."""

    texts: list[str | None]
    """None where there is none."""
    several: int
    """Number of items with several titles, the first of which counts."""


def titles(column: Column, items: np.ndarray, num_items: int, *, guessed: bool) -> Titles:
    """Find each item's title. White space is made single.

    Args:
        column: The titles of n rows.
        items: int64 [n], each row's item.
        num_items: Number of items k.
        guessed: Whether the column was guessed; it is refused then if it does not title the items.

    Raises:
        ValueError: A title is a list or the like, or a guessed column holds other text than titles.
    """
    codes, values = distinct(column)
    texts = pd.Series(values.to_pylist(), dtype=object).map(_plain)
    numbers, known = pd.factorize(texts.to_numpy())
    given = codes >= 0
    named = np.where(given, numbers[np.maximum(codes, 0)] if len(numbers) else -1, -1)
    rows = np.flatnonzero(given & ~np.isin(named, np.flatnonzero(known == "")))
    order = rows[order_by(items[rows], named[rows])] if len(rows) else rows
    pairs = order[run_starts(items[order], named[order])]  # each item's first row of each title
    counts = np.bincount(items[pairs], minlength=num_items)
    several = counts > 1
    if guessed:
        _refuse_other_text(column, items[rows], rows, pairs[several[items[pairs]]], items, several)
    found: list[str | None] = [None] * num_items
    first = np.sort(pairs)[::-1]  # so that the first row of an item is written last
    for item, title in zip(items[first].tolist(), named[first].tolist(), strict=True):
        found[item] = known[title]
    return Titles(found, int(several.sum()))


def _plain(text: str) -> str:
    plain = " ".join(text.split())
    return "" if plain in ("nan", "NaN") else plain


def _refuse_other_text(
    column: Column,
    titled: np.ndarray,
    rows: np.ndarray,
    pairs: np.ndarray,
    items: np.ndarray,
    several: np.ndarray,
) -> None:
    """Refuse the headlines of reviews, or the names of users, that stand where titles should."""
    often = int((np.bincount(titled, minlength=len(several)) > 1).sum())
    if not several.any() or several.sum() <= DOUBTFUL * often:
        return
    one, other = np.sort(pairs[items[pairs] == items[pairs[0]]])[:2].tolist()
    texts = [shown(column.values[row].as_py()) for row in (one, other)]
    raise ValueError(
        f"{column.where(other)}: the column {column.name!r}, guessed to be the items' titles, "
        f"holds {texts[1]} for an item that is {texts[0]} before, and so for {several.sum()} of "
        f"{often} items: name the titles by --prepare.custom.title COLUMN (the column of the items "
        "shows their ids), or give a file of titles beside this one"
    )
