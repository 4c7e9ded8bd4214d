"""What the explorer of a report's page shows: users, one row each, as two methods see them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.artifacts import read_table, read_tensors
from recipes.data.padding import PADDING
from recipes.evaluation.parts import GATE_WEIGHTS, PREDICTIONS, Part, planned_parts
from recipes.methods.method import Arm
from recipes.run import Run
from recipes.scoring.rows import EvaluatedRows, evaluated_rows

MOST_ROWS = 300
"""Maximum number of rows in the page, which holds all that it shows."""
DIGITS = 6
LARGEST = 1e38
"""Stands for an infinite score, which JSON cannot hold."""


def explored(run: Run, arms: Sequence[Arm]) -> dict[str, Any] | None:
    """The first rows of the evaluation, with every arm's scores of their candidates.

    Each arm is shown with its first seed, and each row with its first draw of candidates.

    Returns:
        `titles`, by item id; `rows`, each with `user`, `row`, `history`, `target` and `candidates`
        (item ids, the oldest item of the history first); and `arms`, each with `name`, `title`,
        `seed`, `scores` (a list for each row) and, where there are any, `answers` and `gates` (a
        list for each row). A row with a NaN among its scores, or its gate's weights, has None in
        their place. None where all items are ranked, since no scores are kept then.
    """
    rows = evaluated_rows(run.data, run.experiment.evaluate)
    if rows.whole_catalogue:
        return None
    first = np.arange(0, len(rows), rows.draws)[:MOST_ROWS]
    shown = [_row(run, rows, int(index)) for index in first]
    items = {item for row in shown for item in (*row["history"], *row["candidates"])}
    parts: dict[str, Part] = {}
    for part in planned_parts(run, arms):
        parts.setdefault(part.arm.name, part)
    return {
        "titles": {item: run.data.titles[item] for item in sorted(items)},
        "rows": shown,
        "arms": [_arm(part, first) for part in parts.values()],
    }


def _row(run: Run, rows: EvaluatedRows, index: int) -> dict[str, Any]:
    number = int(rows.rows[index])
    history = run.data.split(rows.split).histories[number]
    return {
        "user": int(rows.user_ids[index]),
        "row": number,
        "history": history[history != PADDING].tolist(),
        "target": int(rows.targets[index]),
        "candidates": rows.candidates[index].tolist(),
    }


def _arm(part: Part, shown: np.ndarray) -> dict[str, Any]:
    """One arm's predictions of the rows at the indices `shown`."""
    table = read_table(part.folder / PREDICTIONS).iloc[shown]
    found = {
        "name": part.arm.name,
        "title": part.arm.title,
        "seed": part.seed,
        "scores": _rounded(table["scores"]),
    }
    if table["output"].notna().all():
        found["answers"] = table["output"].tolist()
    weights = _gates(part.folder)
    if weights is not None:
        found["gates"] = _rounded(weights[shown])
    return found


def _rounded(rows: Iterable[np.ndarray]) -> list[list[float] | None]:
    """Rows of numbers as JSON can hold them; None for one that has a NaN."""
    return [
        None if np.isnan(row).any() else np.clip(np.round(row, DIGITS), -LARGEST, LARGEST).tolist()
        for row in rows
    ]


def _gates(folder: Path) -> np.ndarray | None:
    path = folder / GATE_WEIGHTS
    return read_tensors(path)["weights"].numpy() if path.exists() else None
