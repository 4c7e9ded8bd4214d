"""Experts from clusters of users: how many, and of which ranks.

K-means (Euclidean) of train windows' representations, once for each number of clusters. The number
with the highest mean silhouette is the number of experts, and the clusters' sizes share the total
rank among them. Only train windows are read, so nothing is chosen by validation or test users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.spatial.distance import cdist
from torch import Tensor

from recipes.scoring.arrays import Floats, Ints

COUNTS = range(2, 9)
"""Numbers of clusters that are tried: the paper's numbers of experts and those between them."""
MOST_WINDOWS = 2000
"""Most windows that are clustered, evenly spaced."""
STARTS, ROUNDS = 5, 50
"""Starts of K-means (k-means++), of which the tightest is kept, and the rounds of each."""


@dataclass(frozen=True)
class Clustering:
    """Clusters of users, as experts."""

    sizes: list[int]
    """Windows in each cluster, the largest first."""
    silhouette: float
    """Mean silhouette of the windows, in [-1, 1]."""
    ranks: list[int]
    """Ranks in proportion to the sizes, 1 or more each."""


def clusterings(users: Tensor, total: int) -> list[Clustering]:
    """Clusters for each number of `COUNTS` that windows and ranks suffice for.

    Args:
        users: float32 [n, d], representations of train windows.
        total: The total rank.

    Raises:
        ValueError: They do not suffice for two.
    """
    chosen = np.unique(np.linspace(0, len(users) - 1, MOST_WINDOWS).round().astype(np.int64))
    points = users.double().numpy()[chosen]
    most = min(total, len(np.unique(points, axis=0)))
    distances = cdist(points, points).astype(np.float64, copy=False)
    found = []
    for count in COUNTS:
        labels = _labels(points, count) if count <= most else None
        if labels is not None:
            sizes = sorted(np.bincount(labels).tolist(), reverse=True)
            ranks = ranks_from_sizes(sizes, total)
            found.append(Clustering(sizes, silhouette(distances, labels), ranks))
    if not found:
        raise ValueError(
            f"expert_ranks='clusters': a rank of {total} and the representations of {len(points)} "
            f"train windows, of which {len(np.unique(points, axis=0))} differ, do not make two "
            "clusters: give the ranks as a list"
        )
    return found


def best(found: Sequence[Clustering]) -> Clustering:
    """The one with the highest silhouette, the first of equals."""
    return max(found, key=lambda one: one.silhouette)


def silhouette(distances: Floats, labels: Ints) -> float:
    """Mean silhouette (Rousseeuw, 1987) of n points in two clusters or more, none of them empty.

    A point's silhouette is `(b - a) / max(a, b)`: a is its mean distance to the others of its
    cluster, b that to the points of the nearest other cluster. That of a cluster's only point is 0.

    Args:
        distances: float64 [n, n], between points.
        labels: int64 [n], from 0.
    """
    members = np.eye(int(labels.max()) + 1)[labels]
    sizes, every = members.sum(axis=0), np.arange(len(labels))
    sums = distances @ members
    own = sizes[labels]
    within = sums[every, labels] / np.maximum(own - 1, 1)
    means = sums / sizes
    means[every, labels] = np.inf
    nearest = means.min(axis=1)
    largest = np.maximum(np.maximum(within, nearest), np.finfo(np.float64).tiny)
    return float(np.where(own > 1, (nearest - within) / largest, 0).mean())


def ranks_from_sizes(sizes: Sequence[int], total: int) -> list[int]:
    """Ranks that sum to `total`, 1 or more each, as near as can be to shares of the sizes.

    Every group gets a rank of 1; what is left is shared by sizes, and rounded by the largest
    remainders, so that the sum is exact.

    Raises:
        ValueError: There are more groups than ranks.
    """
    if len(sizes) > total:
        raise ValueError(f"{len(sizes)} groups cannot share a total rank of {total}: take fewer")
    wanted = np.maximum(total * np.asarray(sizes) / sum(sizes), 1)
    spare = total - len(sizes)
    extra = (wanted - 1) * (spare / max((wanted - 1).sum(), 1e-12))
    ranks = 1 + np.floor(extra + 1e-9).astype(int)
    # The larger remainder first; of equal ones the larger group.
    rest = np.lexsort((-np.asarray(sizes), -(extra - np.floor(extra + 1e-9)).round(9)))
    ranks[rest[: total - ranks.sum()]] += 1
    return ranks.tolist()


def _labels(points: Floats, count: int) -> Ints | None:
    """The tightest of some clusterings, int64 [n]; None if each of them left a cluster empty."""
    random, found, least = np.random.default_rng(0), None, np.inf
    for _ in range(STARTS):
        try:
            centres, labels = kmeans2(
                points, count, iter=ROUNDS, minit="++", missing="raise", rng=random
            )
        except ClusterError:
            continue
        spread = float(((points - centres[labels]) ** 2).sum())
        if len(np.unique(labels)) == count and spread < least:
            found, least = labels.astype(np.int64), spread
    return found
