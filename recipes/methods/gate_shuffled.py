"""A control of the gate: every user is routed by one other user's vectors."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from recipes.about import About
from recipes.data.splits import SplitName
from recipes.methods.gate_control import GateControl
from recipes.recommenders.vectors import Vectors


class GateShuffled(GateControl):
    """iLoRA with the vectors of users shuffled, once for a seed, in training and in evaluation.

    What is left of iLoRA is its parameters, its scale, and real vectors that say nothing about the
    user at hand. What iLoRA has beyond this control comes from what a vector says about its user.
    """

    name = "gate-shuffled"
    summary = "iLoRA with the vectors of users shuffled: a control of what the gate reads"
    about = About(
        title="iLoRA, shuffled vectors",
        meaning="the same adapter and gate, but every user is routed by one other user's vectors, "
        "in training and in evaluation: a control with the same parameters",
        order=72,
        ranks_by="likelihood",
        colour="#CC79A7",
        line=(0, (4, 2)),
    )
    reads = "vectors of one other user, drawn for each user"

    def exchanged(
        self, vectors: Vectors, user_ids: Mapping[SplitName, np.ndarray], seed: int
    ) -> dict[SplitName, Tensor]:
        """The vectors of each user's donor (`donors`), window by window.

        Of n windows, that of number k gets its donor's of number `k * m // n`, of m: early windows
        get early ones. A user without a donor gets zeros, the mean of all vectors.
        """
        donor = donors(user_ids, seed)
        found: dict[SplitName, Tensor] = {}
        for name, users in user_ids.items():
            place = torch.from_numpy(_donated(users, donor))
            own = vectors.users[name]
            found[name] = own[place.clamp(min=0)].masked_fill((place < 0)[:, None], 0)
        return found


def donors(user_ids: Mapping[SplitName, np.ndarray], seed: int) -> dict[int, int]:
    """Another user for each user, the same one in all splits.

    Users whose windows lie in the same splits are put in a random order, and each gets the one
    before, so that every vector is used by one user. A user who shares its splits with nobody has
    no donor.

    Args:
        user_ids: int64 [rows] by split, user id of each row.
        seed: Seed of the order.
    """
    present = {name: np.unique(users) for name, users in user_ids.items()}
    everyone = np.unique(np.concatenate(list(present.values())))
    kinds = sum(2**bit * np.isin(everyone, own) for bit, own in enumerate(present.values()))
    generator = np.random.default_rng(seed)
    found: dict[int, int] = {}
    for kind in np.unique(kinds):
        order = generator.permutation(everyone[kinds == kind])
        if len(order) > 1:
            found |= dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return found


def _donated(users: np.ndarray, donor: Mapping[int, int]) -> np.ndarray:
    """Row of the vector that each row of a split gets: int64 [rows], -1 for none.

    Args:
        users: int64 [rows]; a user's rows are adjacent, and users in any order.
        donor: `donors`.
    """
    known, starts, counts = np.unique(users, return_index=True, return_counts=True)
    own = np.searchsorted(known, users)
    other = np.array([donor.get(user, -1) for user in known.tolist()])
    theirs = np.searchsorted(known, other).clip(max=len(known) - 1)
    number = np.arange(len(users)) - starts[own]
    place = starts[theirs[own]] + number * counts[theirs[own]] // counts[own]
    return np.where(other[own] < 0, -1, place)
