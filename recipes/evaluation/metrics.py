"""Ranking metrics for rows that each have exactly one relevant item, the target.

Candidates that score the same as the target are in no order. Every metric is therefore its
expectation over a uniformly random order of the tied candidates, which has a closed form: with b
other candidates above the target and t candidates at its score, the target included, its rank is
uniform on b+1 .. b+t. This is the expectation of McSherry and Najork (ECIR 2008, Section 3); a
method that scores everything alike is thus worth exactly a random order.

The functions return one outcome for each row, as the bootstrap needs it (`outcomes.py`). On sampled
candidates (the paper: 20 of the catalogue) metrics need not agree with those of full rankings
(Krichene and Rendle, KDD 2020), so `Protocol.words` belongs beside every figure.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipes.scoring.arrays import Floats, Ints


@dataclass(frozen=True)
class Places:
    """Where the target of each of n rows stands among its row's candidates."""

    better: Ints
    """int64 [n], number of other candidates that score strictly higher."""
    tied: Ints
    """int64 [n], number of candidates that score the same, the target included: 1 or more."""
    lost: npt.NDArray[np.bool_] | None = None
    """bool [n], rows without a place, since a score is NaN; their target counts as the last."""

    def __post_init__(self) -> None:
        if self.better.shape != self.tied.shape or self.better.ndim != 1:
            raise ValueError(
                f"better and tied must be [n] each; got {self.better.shape} and {self.tied.shape}"
            )
        if self.better.size == 0:
            raise ValueError("a metric of no rows is undefined: check split, rows and max_users")
        if self.better.min() < 0 or self.tied.min() < 1:
            raise ValueError(
                "better counts from 0 and tied from 1, the target itself; got "
                f"{self.better.min()} and {self.tied.min()}"
            )

    @classmethod
    def of_ranks(cls, ranks: npt.ArrayLike) -> "Places":
        """Places without ties, of ranks that start at 1 (int [n])."""
        better = np.asarray(ranks, dtype=np.int64) - 1
        return cls(better, np.ones_like(better))


def places_of(
    scores: npt.ArrayLike, target_index: npt.ArrayLike, left_out: npt.ArrayLike | None = None
) -> Places:
    """Place of each row's target among its candidates.

    Args:
        scores: float [n, c]; higher is better.
        target_index: int [n], the target's column in `scores`.
        left_out: bool [n, c], candidates that do not count; None counts all. The target's own
            entry is ignored.

    Raises:
        ValueError: The shapes do not match, an index is out of range, or a score is NaN.
    """
    values = np.asarray(scores)
    index = np.asarray(target_index, dtype=np.int64)
    if values.ndim != 2 or index.shape != values.shape[:1]:
        raise ValueError(
            f"scores must be [n, c] and target_index [n]; got {values.shape} and {index.shape}"
        )
    if np.isnan(values).any():
        raise ValueError("scores contains NaN, which has no rank: check the model that made it")
    if index.size and not (index.min() >= 0 and index.max() < values.shape[1]):
        raise ValueError(f"target_index must lie in [0, {values.shape[1]}), got {index}")
    target = np.take_along_axis(values, index[:, None], axis=1)
    better, tied = values > target, values == target
    if left_out is not None:
        counts = ~np.asarray(left_out, dtype=bool)
        better &= counts
        tied &= counts
        np.put_along_axis(tied, index[:, None], True, axis=1)
    return Places(better.sum(axis=1, dtype=np.int64), tied.sum(axis=1, dtype=np.int64))


def places_or_last(
    scores: npt.ArrayLike, target_index: npt.ArrayLike, left_out: npt.ArrayLike | None = None
) -> Places:
    """`places_of`, where a row that holds a NaN is lost, and its target the last candidate."""
    values, index = np.array(scores), np.asarray(target_index, dtype=np.int64)
    lost = np.asarray(np.isnan(values).any(axis=1), dtype=np.bool_)
    values[lost] = 0
    values[lost, index[lost]] = -1
    found = places_of(values, index, left_out)
    return Places(found.better, found.tied, lost)


def hits(places: Places, k: int) -> Floats:
    """Expected hit of each row, the probability that the target is among the best k: float64 [n].

    `clip(k - b, 0, t) / t`; 1.0 or 0.0 where nothing ties.
    """
    _check(k)
    return np.clip(k - places.better, 0, places.tied) / places.tied


def gains(places: Places, k: int) -> Floats:
    """Expected discounted gain of each row, 1 / log2(1 + rank) within the best k: float64 [n].

    `(D(min(b + t, k)) - D(min(b, k))) / t`, where D sums the gains of the first ranks. With one
    relevant item the ideal gain is 1, so this is the row's NDCG@k (Järvelin and Kekäläinen, 2002).
    """
    _check(k)
    deepest = int(min(k, (places.better + places.tied).max()))
    sums = np.append(0.0, np.cumsum(1 / np.log2(1 + np.arange(1, deepest + 1))))
    return _mean_between(sums, places, k)


def reciprocal_ranks(places: Places) -> Floats:
    """Expected 1 / rank of each row, float64 [n]; their mean is the MRR.

    `(H(b + t) - H(b)) / t`, where H are the harmonic numbers.
    """
    deepest = int((places.better + places.tied).max())
    sums = np.append(0.0, np.cumsum(1 / np.arange(1, deepest + 1)))
    return _mean_between(sums, places, deepest)


def _mean_between(sums: Floats, places: Places, k: int) -> Floats:
    """Mean over ranks b+1 .. b+t of what `sums` accumulates over ranks 1 .. k."""
    last = np.minimum(places.better + places.tied, k)
    return (sums[last] - sums[np.minimum(places.better, k)]) / places.tied


def _check(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
