"""Groups of users by their representations: K-means, and an order of groups."""

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor

from recipes.methods.clusters import centroids, log_weights
from recipes.scoring.arrays import Ints


def groups_of(users: Tensor, count: int) -> Ints:
    """The K-means group of each representation (Euclidean), numbered in a hierarchical order.

    Groups are merged by the mean distance of their centroids, and numbered as the leaves of that
    tree, so that groups with neighbouring numbers are alike.

    Args:
        users: float32 [n, d], representations.
        count: Number of groups.

    Returns:
        int64 [n], from 0.

    Raises:
        ValueError: There are not so many different users, or K-means leaves a group empty.
    """
    different = len(np.unique(users.numpy(), axis=0))
    if different < count:
        raise ValueError(
            f"groups={count}: there are {different} different representations: ask for fewer groups"
        )
    try:
        centres = centroids(users, count)
    except ValueError:  # its message is about experts
        raise ValueError(
            f"groups={count}: {different} different representations do not fall into so many "
            "groups, none of them empty: ask for fewer groups"
        ) from None
    nearest = log_weights(users, centres, None).argmax(dim=1).numpy()
    if count == 1:
        return nearest
    order = leaves_list(linkage(centres.double().numpy(), "average", optimal_ordering=True))
    return np.argsort(order)[nearest]


def two_halves(user_ids: Ints, groups: Ints, random: np.random.Generator) -> list[Ints]:
    """The rows of each group that belong to one half of the users, then those of the other.

    Args:
        user_ids: int64 [n], the user of each row.
        groups: int64 [n], the group of each row, from 0.
        random: Divides the users.

    Returns:
        Places of rows, for each group twice. No user is in the first half of a group and in the
        second half of any.

    Raises:
        ValueError: A group has no row of one of the halves.
    """
    users = random.permutation(np.unique(user_ids))
    is_first = np.isin(user_ids, users[: len(users) // 2])
    halves = []
    for group in range(groups.max() + 1):
        for half in (is_first, ~is_first):
            rows = np.flatnonzero((groups == group) & half)
            if not len(rows):
                raise ValueError(
                    f"groups={groups.max() + 1}: all windows of one group are of users in the same "
                    "half, so it cannot be compared with itself: ask for fewer groups"
                )
            halves.append(rows)
    return halves
