"""The reported metrics. Each is a ratio, with a numerator and a denominator for every row."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from recipes.evaluation.metrics import Places, gains, hits, reciprocal_ranks
from recipes.evaluation.protocol import Protocol
from recipes.scoring.arrays import Floats, Ints

Outcome = Callable[[pd.DataFrame], tuple[Floats, Floats]]


@dataclass(frozen=True)
class Metric:
    """A metric, defined as a ratio of two sums over rows."""

    key: str
    label: str
    """Name in tables; `{source}` stands for the score by which the method ranks."""
    reads: Literal["text", "ranks", "beams"]
    """Whether the metric is computed from generated answers, from places or from beams."""
    outcome: Outcome
    """Predictions of one arm and seed -> each row's (numerator, denominator), float64 [n] each."""


def metrics_for(protocol: Protocol) -> list[Metric]:
    """The metrics of a report."""
    found = [] if protocol.config.decoding == "none" else _text_metrics(protocol)
    words = f"({{source}}, {protocol.words})"
    for k in protocol.config.ks:
        found += [
            _rank_metric(f"hit_ratio@{k}", f"HitRatio@{k} {words}", partial(hits, k=k)),
            _rank_metric(f"ndcg@{k}", f"NDCG@{k} {words}", partial(gains, k=k)),
        ]
    found.append(_rank_metric("mrr", f"MRR {words}", reciprocal_ranks))
    if not protocol.whole_catalogue:
        found += _beam_metrics(protocol)
    if protocol.config.average == "users":
        found = [replace(one, outcome=_by_user(one.outcome)) for one in found]
    return found


def _text_metrics(protocol: Protocol) -> list[Metric]:
    """Hit ratio of all and of valid answers, and valid ratio; by our and the reference's rule."""
    reference = ", substring rule of the reference"
    found = []
    for rule, words, column in (
        ("generation", "", "predicted_item"),
        ("substring", reference, "substring_item"),
    ):
        for kind in ("total", "valid"):
            label = f"HitRatio@1 (generation, of {kind}{words}, {protocol.words})"
            outcome = _text_outcome(column, kind)
            found.append(Metric(f"hit_ratio@1/{rule}/{kind}", label, "text", outcome))
        label = f"ValidRatio (generation{words}{protocol.scope})"
        outcome = _text_outcome(column, "validity")
        found.append(Metric(f"valid_ratio/{rule}", label, "text", outcome))
    return found


def _rank_metric(key: str, label: str, outcome: Callable[[Places], Floats]) -> Metric:
    def ranked(table: pd.DataFrame) -> tuple[Floats, Floats]:
        found = outcome(Places(table["better"].to_numpy(), table["tied"].to_numpy()))
        return found, np.ones_like(found)

    return Metric(f"{key}/ranking", label, "ranks", ranked)


def _beam_metrics(protocol: Protocol) -> list[Metric]:
    """Hit ratio and NDCG of beams, up to their number; none where decoding is greedy."""
    beams, found = protocol.config.num_beams, []
    for k in protocol.config.ks if beams > 1 else ():
        if k <= beams:
            words = f"({beams} beams, {protocol.words})"
            found += [
                Metric(f"hit_ratio@{k}/beams", f"HitRatio@{k} {words}", "beams", _beam_outcome(k)),
                Metric(
                    f"ndcg@{k}/beams", f"NDCG@{k} {words}", "beams", _beam_outcome(k, gain=True)
                ),
            ]
    return found


def _beam_outcome(k: int, gain: bool = False) -> Outcome:
    def counted(table: pd.DataFrame) -> tuple[Floats, Floats]:
        place = table["beam_place"].to_numpy(dtype=np.int64)
        found = ((place >= 0) & (place < k)).astype(np.float64)
        if gain:
            found /= np.log2(2 + np.maximum(place, 0))
        return found, np.ones_like(found)

    return counted


def _text_outcome(column: str, kind: Literal["total", "valid", "validity"]) -> Outcome:
    def parsed(table: pd.DataFrame) -> tuple[Floats, Floats]:
        items = table[column].to_numpy(dtype=np.int64)
        valid, correct = items >= 0, items == table["target"].to_numpy()
        top = valid if kind == "validity" else correct
        bottom = valid if kind == "valid" else np.ones_like(valid)
        return top.astype(np.float64), bottom.astype(np.float64)

    return parsed


def _by_user(outcome: Outcome) -> Outcome:
    """The same metric as a mean over users of each user's ratio: its rows count for one in all."""

    def averaged(table: pd.DataFrame) -> tuple[Floats, Floats]:
        top, bottom = outcome(table)
        _, user = np.unique(table["user_id"], return_inverse=True)
        counted = np.bincount(user, weights=bottom)[user]
        share = np.divide(1.0, counted, out=np.zeros_like(counted), where=counted > 0)
        return top * share, bottom * share

    return averaged


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

    def per_seed(self) -> list[float | None]:
        """The ratio of each seed; None where the denominator is zero."""
        tops, bottoms = self.numerators.sum(axis=1), self.denominators.sum(axis=1)
        return [
            float(top / bottom) if bottom else None
            for top, bottom in zip(tops, bottoms, strict=True)
        ]


def outcomes_of(metric: Metric, table: pd.DataFrame) -> Outcomes:
    """Outcomes of a metric on the predictions of one arm, all seeds included.

    A row's outcome is its mean over the draws of candidates.

    Raises:
        ValueError: The seeds do not cover the same rows.
    """
    seeds = sorted(int(seed) for seed in table["seed"].unique())
    by_seed = [table.loc[table["seed"] == seed].sort_values(by=["row", "draw"]) for seed in seeds]
    first = by_seed[0]["row"].to_numpy()
    if any(not np.array_equal(first, other["row"].to_numpy()) for other in by_seed):
        raise ValueError("seeds of one method cover different rows: run the evaluate stage again")
    draws = by_seed[0]["draw"].nunique()
    pairs = [metric.outcome(one) for one in by_seed]
    return Outcomes(
        seeds=seeds,
        user_ids=by_seed[0]["user_id"].to_numpy()[::draws],
        # [seeds, n * draws] -> [seeds, n]
        numerators=np.stack([top.reshape(-1, draws).mean(axis=1) for top, _ in pairs]),
        denominators=np.stack([bottom.reshape(-1, draws).mean(axis=1) for _, bottom in pairs]),
    )
