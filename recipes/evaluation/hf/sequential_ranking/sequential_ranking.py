"""HitRatio@k, NDCG@k and MRR of rows with one relevant item, for the library `evaluate`.

    metric = evaluate.load("recipes/evaluation/hf/sequential_ranking")
    metric.compute(predictions=scores, references=targets, ks=[1, 10])

It computes nothing by itself: `recipes.evaluation.metrics` does, with ties as an expectation.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from recipes.evaluation.metrics import Places, gains, hits, places_of, reciprocal_ranks
from recipes.scoring.arrays import Ints

DESCRIPTION = """
Ranking metrics where each row has exactly one relevant item, the target. Candidates that score the
same as the target are in no order: every figure is the expectation over all orders of the tied.
"""
INPUTS = """
Args:
    predictions: by default the scores of each row's candidates (floats, higher is better), as many
        in every row; with the configuration "ranks", each target's rank, from 1.
    references: place of the target among the row's candidates, from 0. Not for "ranks".
    ks: cut-offs; by default 1, 5 and 10.
Returns:
    hit_ratio@k and ndcg@k for each k, and mrr: means over rows.
"""
CITATION = """
@inproceedings{mcsherry2008ties,
  title = {Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
           Scores},
  author = {McSherry, Frank and Najork, Marc},
  booktitle = {ECIR},
  year = {2008}
}
"""


class SequentialRanking(evaluate.Metric):
    """The metric, in the configurations `default` (scores and targets) and `ranks`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "ranks":
            features = {"predictions": datasets.Value("float64")}
        elif self.config_name == "default":
            scores = datasets.Sequence(datasets.Value("float64"))
            features = {"predictions": scores, "references": datasets.Value("float64")}
        else:
            raise ValueError(
                f"config_name={self.config_name!r}: choose `ranks`, or none for scores and targets"
            )
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        predictions: Sequence[Sequence[float]] | Sequence[float],
        references: Sequence[float] | None = None,
        ks: Sequence[int] = (1, 5, 10),
    ) -> dict[str, float]:
        if references is None:
            places = Places.of_ranks(_whole("predictions", predictions, 1))
        else:
            if len({len(np.atleast_1d(row)) for row in predictions}) > 1:
                raise ValueError("predictions: give every row as many scores")
            scores = np.asarray(predictions, dtype=np.float64)
            places = places_of(scores, _whole("references", references, 0))
        ks = _whole("ks", ks, 1).tolist()
        found = {f"hit_ratio@{k}": float(hits(places, k).mean()) for k in ks}
        found |= {f"ndcg@{k}": float(gains(places, k).mean()) for k in ks}
        return found | {"mrr": float(reciprocal_ranks(places).mean())}


def _whole(name: str, values: object, least: int) -> Ints:
    """Whole numbers, int64 [n]; features of integers would cut 1.7 to 1 without a word."""
    found = np.asarray(values, dtype=np.float64)
    wrong = found[~((found == np.rint(found)) & (found >= least))]
    if found.ndim != 1 or wrong.size:
        told = f"{name} holds {wrong.flat[0]:g}" if wrong.size else f"{name} is no list"
        raise ValueError(f"{told}: give a list of whole numbers from {least}")
    return found.astype(np.int64)
