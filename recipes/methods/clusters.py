"""Clusters of users by K-means, and how near a user is to each (Euclidean distances)."""

import numpy as np
import torch
from scipy.cluster.vq import ClusterError, kmeans2
from torch import Tensor

ATTEMPTS = 20
"""Starts that are tried until no cluster is empty."""
ROUNDS = 100
"""Rounds of K-means."""
FAR = -1e4
"""Logarithm of a weight that is zero in float32."""


def centroids(users: Tensor, count: int) -> Tensor:
    """Centroids of K-means (k-means++), the same for the same users: float32 [count, d].

    Args:
        users: float32 [n, d], representations of train users.
        count: Number of clusters.

    Raises:
        ValueError: There are not so many different users.
    """
    points = users.double().numpy()
    random = np.random.default_rng(0)
    if len(np.unique(points, axis=0)) >= count:
        for _ in range(ATTEMPTS):
            try:
                found, _ = kmeans2(
                    points, count, iter=ROUNDS, minit="++", missing="raise", rng=random
                )
            except ClusterError:
                continue
            return torch.from_numpy(found).float()
    raise ValueError(
        f"adapt.num_experts={count}: the {len(points)} train windows do not fall into {count} "
        "clusters of users, none of them empty: lower it"
    )


def log_weights(users: Tensor, centres: Tensor, scale: float | None) -> Tensor:
    """Logarithms of the weights of clusters for each user, float32 [n, K].

    Args:
        users: float32 [n, d].
        centres: float32 [K, d].
        scale: The squared distance that counts as one; None gives the nearest cluster all weight.
    """
    squares = torch.cdist(users, centres).square()
    if scale is not None:
        return (-squares / scale).log_softmax(dim=1)
    found = torch.full_like(squares, FAR)
    return found.scatter(1, nearest(users, centres)[:, None], 0.0)


def nearest(users: Tensor, centres: Tensor) -> Tensor:
    """Number of the nearest centroid of each user, int64 [n].

    Args:
        users: float32 [n, d].
        centres: float32 [K, d].
    """
    return torch.cdist(users, centres).argmin(dim=1)


def spread(users: Tensor, centres: Tensor) -> float:
    """Mean squared distance of users to the nearest centroid; 1 if all of them are centroids."""
    return float(torch.cdist(users, centres).amin(dim=1).square().mean()) or 1.0
