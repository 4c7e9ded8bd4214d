"""The reported metrics. Each is a ratio, with a numerator and a denominator for every row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from recipes.evaluation.metrics import gains, hits, sampled_label
from recipes.evaluation.statistics import mean_over_seeds
from recipes.scoring.arrays import Floats, Ints

Outcome = Callable[[pd.DataFrame], tuple[Floats, Floats]]


@dataclass(frozen=True)
class Metric:
    """A metric, defined as a ratio of two sums over rows."""

    key: str
    label: str
    """Name in tables; `{source}` stands for the score by which the method ranks."""
    reads: Literal["text", "ranks"]
    """Whether the metric is computed from generated answers or from ranks."""
    outcome: Outcome
    """Predictions of one arm and seed -> each row's (numerator, denominator), float64 [n] each."""


def metrics_for(ks: Sequence[int], num_candidates: int) -> list[Metric]:
    """The metrics of a report; the first one is its headline."""
    sampled = sampled_label(num_candidates)
    found = _text_metrics(sampled)
    for k in ks:
        place = f"@{k} ({{source}}, {sampled})"
        found += [
            Metric(f"hit_ratio@{k}/ranking", f"HitRatio{place}", "ranks", _rank_outcome(hits, k)),
            Metric(f"ndcg@{k}/ranking", f"NDCG{place}", "ranks", _rank_outcome(gains, k)),
        ]
    return found


def _text_metrics(sampled: str) -> list[Metric]:
    """Hit ratio of all and of valid answers, and valid ratio; by our and the reference's rule."""
    reference = ", substring rule of the reference"
    found = []
    for rule, words, column in (
        ("generation", "", "predicted_item"),
        ("substring", reference, "substring_item"),
    ):
        for kind in ("total", "valid"):
            label = f"HitRatio@1 (generation, of {kind}{words}, {sampled})"
            outcome = _text_outcome(column, kind)
            found.append(Metric(f"hit_ratio@1/{rule}/{kind}", label, "text", outcome))
        label = f"ValidRatio (generation{words})"
        outcome = _text_outcome(column, "validity")
        found.append(Metric(f"valid_ratio/{rule}", label, "text", outcome))
    return found


def _rank_outcome(outcome: Callable[[Floats, int], Floats], k: int) -> Outcome:
    def ranked(table: pd.DataFrame) -> tuple[Floats, Floats]:
        ranks = table["rank"].to_numpy(dtype=np.float64)
        return outcome(ranks, k), np.ones_like(ranks)

    return ranked


def _text_outcome(column: str, kind: Literal["total", "valid", "validity"]) -> Outcome:
    def parsed(table: pd.DataFrame) -> tuple[Floats, Floats]:
        items = table[column].to_numpy(dtype=np.int64)
        valid, correct = items >= 0, items == table["target"].to_numpy()
        top = valid if kind == "validity" else correct
        bottom = valid if kind == "valid" else np.ones_like(valid)
        return top.astype(np.float64), bottom.astype(np.float64)

    return parsed


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of one metric and arm: the same n rows for each seed."""

    seeds: list[int]
    user_ids: Ints
    """int64 [n], user id of each row."""
    numerators: Floats
    """float64 [seeds, n], numerator of each seed and row."""
    denominators: Floats
    """float64 [seeds, n], denominator of each seed and row."""

    def averaged(self) -> tuple[Floats, Floats]:
        """Each row's mean outcomes over the seeds: (numerator, denominator), float64 [n] each."""
        return mean_over_seeds(self.numerators), mean_over_seeds(self.denominators)

    def per_seed(self) -> list[float | None]:
        """The ratio of each seed; None where the denominator is zero."""
        tops, bottoms = self.numerators.sum(axis=1), self.denominators.sum(axis=1)
        return [
            float(top / bottom) if bottom else None
            for top, bottom in zip(tops, bottoms, strict=True)
        ]


def outcomes_of(metric: Metric, table: pd.DataFrame) -> Outcomes:
    """Outcomes of a metric on the predictions of one arm, all seeds included.

    Raises:
        ValueError: The seeds do not cover the same rows.
    """
    seeds = sorted(int(seed) for seed in table["seed"].unique())
    by_seed = [table.loc[table["seed"] == seed].sort_values(by="row") for seed in seeds]
    first = by_seed[0]["row"].to_numpy()
    if any(not np.array_equal(first, other["row"].to_numpy()) for other in by_seed):
        raise ValueError("seeds of one method cover different rows: run the evaluate stage again")
    pairs = [metric.outcome(one) for one in by_seed]
    return Outcomes(
        seeds=seeds,
        user_ids=by_seed[0]["user_id"].to_numpy(),
        numerators=np.stack([pair[0] for pair in pairs]),
        denominators=np.stack([pair[1] for pair in pairs]),
    )
