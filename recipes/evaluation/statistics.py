"""Percentile intervals from a bootstrap over users, for one method and for a difference of two.

Rows of one user are not independent. So users are resampled with replacement, each with all of
their rows. A metric is a ratio of two sums over rows (`metrics.py`), so a resample needs only the
sums of numerator and denominator over each user's rows.

With several training seeds, a row's outcomes are first averaged over the seeds
(`mean_over_seeds`), and then users are resampled. The interval thus covers the variation over
users, given these trained models. The variation over seeds is visible only in the per-seed figures
beside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from recipes.scoring.arrays import Floats, Ints

IntervalKind = Literal["bootstrap over users", "Wilson score over users", "exact"]
CHUNK = 256
"""Number of resamples drawn at once, which limits memory to CHUNK x users."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Settings of the bootstrap."""

    samples: int = 2000
    """Number of resamples."""
    confidence: float = 0.95
    """Confidence level of the intervals."""
    seed: int = 0
    """Random seed of the resamples."""

    def __post_init__(self) -> None:
        if self.samples < 100:
            raise ValueError(
                f"bootstrap_samples must be at least 100, got {self.samples}: "
                "fewer resamples have no tails to take percentiles of"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie in (0, 1), got {self.confidence}")


@dataclass(frozen=True)
class Estimate:
    """A ratio and its interval."""

    value: float
    low: float
    high: float
    confidence: float
    interval: IntervalKind
    degenerate: bool
    """Whether every resample gave the same ratio, so the bootstrap does not show uncertainty."""
    num_rows: int
    num_users: int


@dataclass(frozen=True)
class Difference:
    """A method's ratio minus another's, on the same rows, and its interval."""

    value: float
    low: float
    high: float
    confidence: float
    share_above_zero: float
    """Share of the resamples in which the difference is positive."""
    degenerate: bool
    num_rows: int
    num_users: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False if the interval is degenerate."""
        return not self.degenerate and (self.low > 0 or self.high < 0)


def mean_over_seeds(outcomes: npt.ArrayLike) -> Floats:
    """Mean over seeds of the same rows' outcomes: [seeds, n] -> float64 [n]."""
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"outcomes must be [seeds, n], got shape {values.shape}")
    return values.mean(axis=0)


def resampled_users(num_users: int, resampling: Resampling) -> Iterator[Ints]:
    """Yield resamples of users, as indices drawn with replacement: int64 [chunk, num_users].

    Equal seeds give equal draws, so all methods of a report get the same resamples.
    """
    generator = np.random.default_rng(resampling.seed)
    for start in range(0, resampling.samples, CHUNK):
        size = (min(CHUNK, resampling.samples - start), num_users)
        yield generator.integers(num_users, size=size)


def ratio_interval(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    user_ids: npt.ArrayLike,
    resampling: Resampling,
) -> Estimate | None:
    """sum(numerator) / sum(denominator) over rows, with an interval clustered by user.

    If all rows hit, or none does, every resample has the same ratio, and a percentile interval such
    as [1, 1] would suggest certainty. It is replaced by the Wilson score interval, with one trial
    for each user.

    Args:
        numerator: float [n], outcome of each row, 0 <= numerator <= denominator.
        denominator: float [n], 1 for each row that counts, 0 for one that does not.
        user_ids: int [n], user id of each row.
        resampling: Settings of the bootstrap.

    Returns:
        The estimate; None if no row counts, since the ratio is then undefined.

    Raises:
        ValueError: Shapes differ, or there are fewer than two users.
    """
    top, bottom = _user_sums(user_ids, numerator, denominator)
    if bottom.sum() == 0:
        return None
    value = float(top.sum() / bottom.sum())
    ratios = _resampled(len(top), resampling, lambda draw: _ratio(top[draw], bottom[draw]))
    low, high = _percentiles(ratios, resampling.confidence)
    degenerate = _constant(ratios)
    kind: IntervalKind = "bootstrap over users"
    if degenerate and value in (0.0, 1.0):
        counted = int((bottom > 0).sum())
        low, high = wilson_interval(value * counted, counted, resampling.confidence)
        kind = "Wilson score over users"
    rows = int(np.asarray(user_ids).size)
    return Estimate(value, low, high, resampling.confidence, kind, degenerate, rows, len(top))


def paired_difference(
    first: tuple[npt.ArrayLike, npt.ArrayLike],
    second: tuple[npt.ArrayLike, npt.ArrayLike],
    user_ids: npt.ArrayLike,
    resampling: Resampling,
) -> Difference | None:
    """The first method's ratio minus the second's, with an interval clustered by user.

    Both ratios are computed on the same resampled users, so variation that the methods share
    cancels out.

    Args:
        first: (numerator, denominator) of the first method, float [n] each.
        second: (numerator, denominator) of the second method, with rows in the same order.
        user_ids: int [n], user id of each row.
        resampling: Settings of the bootstrap.

    Returns:
        The difference; None if either ratio is undefined.

    Raises:
        ValueError: Shapes differ, or there are fewer than two users.
    """
    top, bottom, other_top, other_bottom = _user_sums(user_ids, *first, *second)
    if bottom.sum() == 0 or other_bottom.sum() == 0:
        return None
    value = float(top.sum() / bottom.sum() - other_top.sum() / other_bottom.sum())
    differences = _resampled(
        len(top),
        resampling,
        lambda draw: _ratio(top[draw], bottom[draw]) - _ratio(other_top[draw], other_bottom[draw]),
    )
    low, high = _percentiles(differences, resampling.confidence)
    return Difference(
        value=value,
        low=low,
        high=high,
        confidence=resampling.confidence,
        share_above_zero=float((differences > 0).mean()),
        degenerate=_constant(differences),
        num_rows=int(np.asarray(user_ids).size),
        num_users=len(top),
    )


def wilson_interval(hits: float, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, 1927), which is also valid at 0 and 1."""
    if trials < 1 or not 0 <= hits <= trials:
        raise ValueError(f"need 0 <= hits <= trials and trials >= 1, got {hits} of {trials}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = hits / trials, 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    half = z / scale * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _user_sums(user_ids: npt.ArrayLike, *columns: npt.ArrayLike) -> list[Floats]:
    """Sums of each column [n] over each user's rows: float64 [users] each."""
    users = np.asarray(user_ids)
    values = [np.asarray(column, dtype=np.float64) for column in columns]
    if users.ndim != 1 or any(column.shape != users.shape for column in values):
        raise ValueError(
            f"user_ids and every outcome must be [n]; got {users.shape} and "
            f"{[column.shape for column in values]}"
        )
    _, index = np.unique(users, return_inverse=True)
    num_users = int(index.max()) + 1 if index.size else 0
    if num_users < 2:
        raise ValueError(
            f"an interval over users needs at least 2 users, got {num_users}: raise max_users"
        )
    return [np.bincount(index, weights=column).astype(np.float64) for column in values]


def _resampled(
    num_users: int, resampling: Resampling, statistic: Callable[[Ints], Floats]
) -> Floats:
    """`statistic` of each resample: float64 [samples], without undefined values (0/0)."""
    draws = resampled_users(num_users, resampling)
    values = np.concatenate([statistic(draw) for draw in draws])
    return values[~np.isnan(values)]


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Ratio of each resample, from its users' sums: [chunk, users] -> [chunk]; NaN for 0/0."""
    top, bottom = numerator.sum(axis=1), denominator.sum(axis=1)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _percentiles(values: Floats, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _constant(values: Floats) -> bool:
    """Whether all resamples have the same value, up to rounding."""
    return bool(np.ptp(values) < 1e-12)
