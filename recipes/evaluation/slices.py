"""Figures of parts of the rows: by the length of the history, and by the target's frequency.

A slice holds the rows of one kind, and its figures are computed as those of all rows are, with
intervals over the users that have such rows. Slices are few and the same for all datasets, so that
nobody chooses them by their figures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recipes.data.padding import PADDING
from recipes.data.tables import PreparedData, Split
from recipes.evaluation.outcomes import Metric, Outcomes, metrics_for, outcomes_of
from recipes.evaluation.protocol import Protocol
from recipes.evaluation.statistics import Resampling, ratio_interval
from recipes.evaluation.summary import difference_of
from recipes.methods.method import Arm
from recipes.scoring.arrays import Ints
from recipes.scoring.rows import EvaluatedRows

LENGTHS = {0: "0", 1: "1", 2: "2", 3: "3 to 5", 6: "6 to 9", 10: "10 or more"}
"""Least length of the history in a slice -> its name."""
FREQUENCIES = {0: "cold", 1: "1 to 9", 10: "10 to 99", 100: "100 or more"}
"""Least number of times that a slice's targets occur in train -> its name; a cold one: never."""
GENERATED = "hit_ratio@1/generation/total"
BASELINE = "lora"
"""The method that differences within slices are taken from."""


@dataclass(frozen=True)
class Slicing:
    """A division of the evaluated rows into slices."""

    by: str
    """What divides them: `history` or `frequency`."""
    names: tuple[str, ...]
    """Names of all slices, in order."""
    slices: Ints
    """int64 [n], index of each row's slice in `names`."""


def slicings(data: PreparedData, rows: EvaluatedRows) -> list[Slicing]:
    """The divisions of the n evaluated rows, of each draw of candidates alike."""
    lengths = data.split(rows.split).history_lengths[rows.rows]
    counts = train_counts(data.split("train"), data.num_items)[rows.targets]
    return [_divided("history", LENGTHS, lengths), _divided("frequency", FREQUENCIES, counts)]


def train_counts(train: Split, num_items: int) -> Ints:
    """How many train windows have each item as their target: int64 [num_items].

    An item that only histories hold counts once: it is not cold. There are some where a dataset
    comes as windows, without the interactions that they were cut from.
    """
    counts = np.bincount(train.targets, minlength=num_items)
    shown = np.unique(train.histories)
    shown = shown[shown != PADDING]
    counts[shown] = np.maximum(counts[shown], 1)
    return counts


def _divided(by: str, least: dict[int, str], values: Ints) -> Slicing:
    index = np.searchsorted(list(least), values, side="right") - 1
    return Slicing(by, tuple(least.values()), index.astype(np.int64))


def slice_entries(
    predictions: pd.DataFrame,
    arms: Sequence[Arm],
    protocol: Protocol,
    rows: EvaluatedRows,
    divisions: Sequence[Slicing],
    random: pd.DataFrame,
    resampling: Resampling,
) -> list[dict[str, Any]]:
    """The main figures of every arm in each slice that has rows (`slices` of `metrics.json`).

    Args:
        predictions: See `summarise`; so are `arms`, `random` and `resampling`.
        arms: All arms.
        protocol: What targets are ranked among.
        rows: The evaluated rows.
        divisions: What `slicings` returns.
        random: Predictions of a random order.
        resampling: Settings of the bootstrap.

    Returns:
        For each division, slice, metric and arm: `by`, `slice`, `method`, `key`, `value`, `low` and
        `high`, `interval`, and the numbers of rows and users. With a single user there is no
        interval, and `low` and `high` are None.
    """
    found = []
    for own, chosen, tables in _slices(predictions, rows, divisions):
        for metric in _metrics(protocol):
            for arm in arms:
                entry: dict[str, Any] = {}
                if arm.method.is_random_order:
                    entry = _exact(metric, random.loc[chosen])
                elif arm.name in tables:
                    entry = _measured(metric, tables[arm.name], resampling)
                if entry:
                    found.append({**own, "method": arm.name, "key": metric.key, **entry})
    return found


def slice_differences(
    predictions: pd.DataFrame,
    arms: Sequence[Arm],
    protocol: Protocol,
    rows: EvaluatedRows,
    divisions: Sequence[Slicing],
    resampling: Resampling,
) -> list[dict[str, Any]]:
    """Each adapter minus plain LoRA in each slice that has rows, on the same rows and resamples.

    Without an arm of the method `lora`, the simplest adapter stands in its place.

    Args:
        predictions: See `summarise`.
        arms: All arms, from simple to elaborate.
        protocol: What targets are ranked among.
        rows: The evaluated rows.
        divisions: What `slicings` returns.
        resampling: Settings of the bootstrap.

    Returns:
        The entries of `slice_differences` in `metrics.json`: the fields of `slice_entries`, and
        `baseline`, the arm that is subtracted. `excludes_zero` is False where there is no interval.
    """
    adapters = [arm for arm in arms if arm.method.is_adapter]
    plain = [arm for arm in adapters if arm.method.name == BASELINE] or adapters
    found = []
    for own, _, tables in _slices(predictions, rows, divisions):
        for metric in _metrics(protocol):
            measured = {
                arm.name: outcomes_of(metric, tables[arm.name])
                for arm in adapters
                if arm.name in tables and not _is_mute(metric, tables[arm.name])
            }
            for arm in adapters:
                pair = arm.name, plain[0].name
                if pair[0] == pair[1] or not measured.keys() >= set(pair):
                    continue
                entry = _difference(measured[pair[0]], measured[pair[1]], resampling)
                names = {"method": pair[0], "baseline": pair[1], "key": metric.key}
                found.append({**own, **names, **entry})
    return found


def _slices(
    predictions: pd.DataFrame, rows: EvaluatedRows, divisions: Sequence[Slicing]
) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.bool_], dict[str, pd.DataFrame]]]:
    """Each slice that has rows: its names, which rows it has, and the arms' predictions of them."""
    tables = {str(name): table for name, table in predictions.groupby("method", sort=False)}
    for division in divisions:
        of_row = np.full(int(rows.rows.max()) + 1, -1)
        of_row[rows.rows] = division.slices
        for index, name in enumerate(division.names):
            chosen = division.slices == index
            if chosen.any():
                own = {
                    arm: table.loc[of_row[table["row"].to_numpy()] == index]
                    for arm, table in tables.items()
                }
                yield {"by": division.by, "slice": name}, chosen, own


def _metrics(protocol: Protocol) -> list[Metric]:
    """The metrics that slices show."""
    keys = (GENERATED, f"hit_ratio@{protocol.headline}/ranking")
    return [metric for metric in metrics_for(protocol) if metric.key in keys]


def _is_mute(metric: Metric, table: pd.DataFrame) -> bool:
    """Whether a metric reads answers, and there are none."""
    return metric.reads == "text" and bool(table["predicted_item"].isna().to_numpy().all())


def _difference(one: Outcomes, other: Outcomes, resampling: Resampling) -> dict[str, Any]:
    """A difference with its interval, or without one where there is a single user."""
    users = len(np.unique(one.user_ids))
    if users > 1:
        difference = difference_of(one, other, resampling)
        assert difference is not None  # every row counts in both metrics
        return asdict(difference) | {"excludes_zero": difference.excludes_zero}
    value, less = (float(o.numerators.sum() / o.denominators.sum()) for o in (one, other))
    return _without_interval(value - less, one) | {"excludes_zero": False}


def _without_interval(value: float, found: Outcomes) -> dict[str, Any]:
    """The fields of a figure of a single user's rows."""
    sizes = {"num_rows": len(found.user_ids), "num_users": 1}
    return {"value": value, "low": None, "high": None, "interval": "none", **sizes}


def _exact(metric: Metric, table: pd.DataFrame) -> dict[str, Any]:
    """A random order's figure; empty for answers, which it does not write."""
    if metric.reads != "ranks":
        return {}
    top, bottom = metric.outcome(table)
    value = float(top.sum() / bottom.sum())
    return {"value": value, "low": value, "high": value, "interval": "exact"}


def _measured(metric: Metric, table: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    """An arm's figure with its interval; empty if the metric reads answers and it writes none."""
    if _is_mute(metric, table):
        return {}
    found = outcomes_of(metric, table)
    if len(np.unique(found.user_ids)) > 1:
        estimate = ratio_interval(found.numerators, found.denominators, found.user_ids, resampling)
        assert estimate is not None  # every row counts in both metrics
        return asdict(estimate)
    return _without_interval(float(found.numerators.sum() / found.denominators.sum()), found)
