"""Computes metrics of each arm and differences between arms from predictions, with intervals."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from recipes.evaluation.answers import INVALID
from recipes.evaluation.outcomes import Metric, Outcomes, metrics_for, outcomes_of
from recipes.evaluation.protocol import Protocol
from recipes.evaluation.statistics import (
    Difference,
    Resampling,
    paired_difference,
    ratio_interval,
)
from recipes.methods.method import Arm
from recipes.scoring.arrays import Floats, Ints

Entry = dict[str, Any]


def random_order(user_ids: Ints, counts: Ints) -> pd.DataFrame:
    """Predictions of a random order, as a table with one line a row: all candidates tie.

    Args:
        user_ids: int64 [n], user id of each row.
        counts: int64 [n], number of candidates that each row's target is ranked among, itself
            included.
    """
    return pd.DataFrame({"user_id": user_ids, "better": np.zeros_like(counts), "tied": counts})


def summarise(
    predictions: pd.DataFrame,
    arms: Sequence[Arm],
    protocol: Protocol,
    random: pd.DataFrame,
    resampling: Resampling,
) -> dict[str, list[dict[str, Any]]]:
    """All metrics and differences of a table of predictions (`metrics.json`).

    Args:
        predictions: Predictions of every arm that predicts, as `predictions_table` writes them.
        arms: All arms, from simple to elaborate; a difference is the later arm minus the earlier.
        protocol: Cut-offs, and what targets are ranked among.
        random: `random_order`'s predictions of the same rows.
        resampling: Settings of the bootstrap.

    Returns:
        `metrics`, with one entry for each arm and metric, and `comparisons`, with one entry for
        each pair of arms and each metric that both have. Where an arm has several seeds,
        `given_trainings` is the interval over users alone: it speaks of these trained models.
        `invalid`: of each arm that writes, the number of answers, of all seeds and draws, and how
        many of them are invalid, by kind.
    """
    tables = {str(name): table for name, table in predictions.groupby("method", sort=False)}
    having = [arm for arm in arms if arm.name in tables]
    writing = [arm for arm in having if not _mute(tables[arm.name])]
    beaming = [arm for arm in writing if _has_beams(tables[arm.name])]
    metrics, comparisons = [], []
    for metric in metrics_for(protocol):
        own = {"ranks": having, "text": writing, "beams": beaming}[metric.reads]
        found = {arm.name: outcomes_of(metric, tables[arm.name]) for arm in own}
        metrics += [_metric_entry(metric, arm, found[arm.name], resampling) for arm in own]
        comparisons += [
            _comparison_entry(
                metric,
                (later.name, found[later.name]),
                (earlier.name, found[earlier.name]),
                resampling,
            )
            for position, later in enumerate(own)
            for earlier in own[:position]
        ]
    kinds = [_invalid_entry(arm, tables[arm.name]) for arm in writing]
    silent = [arm.name for arm in having if writing and arm not in writing]
    drawn = [arm.name for arm in arms if arm.method.is_random_order]
    metrics += _exact_entries(protocol, random, drawn, silent)
    return {"metrics": metrics, "comparisons": comparisons, "invalid": kinds}


def _has_beams(table: pd.DataFrame) -> bool:
    return "beam_place" in table and bool(table["beam_place"].notna().to_numpy().all())


def _mute(table: pd.DataFrame) -> bool:
    """Whether an arm generates no answers."""
    return bool(table["predicted_item"].isna().to_numpy().all())


def _invalid_entry(arm: Arm, table: pd.DataFrame) -> Entry:
    said = table["invalid"].to_numpy(dtype=object)
    kinds = {kind: int(np.count_nonzero(said == kind)) for kind in INVALID}
    return {"method": arm.name, "answers": len(table), "kinds": kinds}


def _metric_entry(metric: Metric, arm: Arm, found: Outcomes, resampling: Resampling) -> Entry:
    estimate = ratio_interval(found.numerators, found.denominators, found.user_ids, resampling)
    entry: Entry = {
        "method": arm.name,
        "key": metric.key,
        "label": metric.label.format(source=arm.method.about.ranks_by),
        "seeds": found.seeds,
        "per_seed": found.per_seed(),
    }
    return entry | (_undefined(found) if estimate is None else asdict(estimate))


def _undefined(found: Outcomes) -> Entry:
    """The entry of an undefined ratio, such as the hit ratio of valid answers if none is valid."""
    users = len(set(found.user_ids.tolist()))
    return {"value": None, "num_rows": len(found.user_ids), "num_users": users}


def _comparison_entry(
    metric: Metric,
    first: tuple[str, Outcomes],
    second: tuple[str, Outcomes],
    resampling: Resampling,
) -> Entry:
    (method, found), (other, baseline) = first, second
    difference = difference_of(found, baseline, resampling)
    entry: Entry = {
        "method": method,
        "baseline": other,
        "key": metric.key,
        "label": metric.label.format(source="ranking"),
        "per_seed": _per_seed_differences(found, baseline),
    }
    if difference is None:
        return entry | _undefined(found)
    entry |= asdict(difference) | {"excludes_zero": difference.excludes_zero}
    if max(len(found.seeds), len(baseline.seeds)) > 1:
        given = paired_difference(
            _over_seeds(found), _over_seeds(baseline), found.user_ids, resampling
        )
        assert given is not None  # it is undefined where `difference` is
        entry["given_trainings"] = [given.low, given.high]
    return entry


def difference_of(found: Outcomes, baseline: Outcomes, resampling: Resampling) -> Difference | None:
    """The one minus the other, paired by row; None where a ratio is undefined."""
    return paired_difference(
        (found.numerators, found.denominators),
        (baseline.numerators, baseline.denominators),
        found.user_ids,
        resampling,
        same_seeds=found.seeds == baseline.seeds,
    )


def _over_seeds(found: Outcomes) -> tuple[Floats, Floats]:
    """Each row's outcome, summed over seeds: what is left is the variation over users."""
    return found.numerators.sum(axis=0), found.denominators.sum(axis=0)


def _per_seed_differences(found: Outcomes, baseline: Outcomes) -> list[float | None]:
    """The difference for each seed; empty if the seeds do not match.

    A baseline with a single seed is compared with every seed.
    """
    theirs = baseline.per_seed()
    if len(theirs) == 1:
        theirs = theirs * len(found.seeds)
    elif baseline.seeds != found.seeds:
        return []
    return [
        None if mine is None or other is None else mine - other
        for mine, other in zip(found.per_seed(), theirs, strict=True)
    ]


def _exact_entries(
    protocol: Protocol, random: pd.DataFrame, drawn: Sequence[str], silent: Sequence[str]
) -> list[Entry]:
    """Figures known exactly: metrics of a random order, and validity of arms that only score."""
    entries = []
    for metric in metrics_for(protocol):
        if metric.reads == "ranks":
            label = metric.label.format(source="random order, exact")
            entries += [_exact(arm, metric.key, label, _ratio(metric, random)) for arm in drawn]
    return entries + [
        _exact(arm, "valid_ratio/generation", "ValidRatio (by construction)", 1.0) for arm in silent
    ]


def random_value(key: str, protocol: Protocol, random: pd.DataFrame) -> float:
    """The exact expectation of a ranking metric for a random order."""
    (metric,) = [one for one in metrics_for(protocol) if one.key == key]
    return _ratio(metric, random)


def _ratio(metric: Metric, table: pd.DataFrame) -> float:
    top, bottom = metric.outcome(table)
    return float(top.sum() / bottom.sum())


def _exact(method: str, key: str, label: str, value: float) -> Entry:
    return {
        "method": method,
        "key": key,
        "label": label,
        "value": value,
        "low": value,
        "high": value,
        "interval": "exact",
    }
