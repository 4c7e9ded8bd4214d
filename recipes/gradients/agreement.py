"""How alike gradients are, between groups and within them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from recipes.scoring.arrays import Floats

RESAMPLES = 2000
"""Bootstrap resamples of groups."""


def similarities(found: Mapping[str, Tensor]) -> Floats:
    """Cosines between the gradients of g groups, averaged over module types: float64 [g, g].

    A type whose gradient is zero for some group has no direction, and is left out.

    Args:
        found: What `gradients` returns.
    """
    tables = []
    for vectors in found.values():
        lengths = vectors.double().norm(dim=1, keepdim=True)
        if (lengths > 0).all():
            units = vectors.double() / lengths
            tables.append((units @ units.T).numpy())
    count = len(next(iter(found.values())))
    return np.mean(tables, axis=0) if tables else np.full((count, count), np.nan)


def of_groups(found: Mapping[str, Tensor]) -> Floats:
    """Cosines between two halves of g groups, averaged over module types: float64 [g, g].

    The entry of two groups is the mean of the cosines of either's first half with the other's
    second. On the diagonal are a group's two halves, so each entry compares as many samples as any
    other, and none with itself.

    Args:
        found: What `gradients` returns for both halves of each group, one after the other.
    """
    across = similarities(found)[::2, 1::2]
    return (across + across.T) / 2


def summary(cosines: Floats) -> dict[str, Any]:
    """The cosines in few figures: between groups, within them, and the difference.

    Args:
        cosines: float64 [g, g], what `of_groups` returns.

    Returns:
        `cosines`, and `between`, `lowest` (of two groups), `within`, and `gap`: within minus
        between as a mean over groups, with `low` and `high` of its 95 % interval (percentiles of a
        bootstrap over groups).
    """
    count = len(cosines)
    within = np.diag(cosines)
    between = (cosines.sum(axis=1) - within) / (count - 1)
    gaps = within - between
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    low, high = np.percentile(gaps[draws].mean(axis=1), [2.5, 97.5])
    return {
        "cosines": cosines.tolist(),
        "between": float(between.mean()),
        "lowest": float(cosines[~np.eye(count, dtype=bool)].min()),
        "within": float(within.mean()),
        "gap": {"value": float(gaps.mean()), "low": float(low), "high": float(high)},
    }
