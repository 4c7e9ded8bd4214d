"""A control of the gate: every user has one expert, that of a cluster of users, and keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from recipes.about import About
from recipes.data.splits import SPLITS, SplitName
from recipes.data.tables import Split
from recipes.methods.adapter import SOURCE
from recipes.methods.clustered import ClusteredILoRA, read_centroids
from recipes.methods.clusters import nearest
from recipes.methods.method import Arm
from recipes.recommenders.vectors import Vectors
from recipes.run import Run


class GateHard(ClusteredILoRA):
    """The experts of `ILoRA`, of which a user has one; nothing is mixed, and no gate is trained.

    The plugin's gate is `hard`, which takes the expert's number and has no parameters (iLoRA's
    linear gate has K times the recommender's width). Experts are scaled as a LoRA of the total rank
    is, since the one expert has a weight of 1, and not around 1 / K.

    This is `k-loras`, swapped, with one difference: there a window's own representation chooses,
    and a user may change the expert from window to window.
    """

    name = "gate-hard"
    summary = "iLoRA with one expert a user, by K-means of users: a control of the mixture"
    about = About(
        title="iLoRA, one expert a user",
        meaning="the same experts, but every user has one of them for good, by K-means of users' "
        "representations: a control with the same experts and no gate",
        order=71,
        ranks_by="likelihood",
        colour="#8C6BB1",
        line=(0, (4, 2)),
    )
    fixed_options: ClassVar[Mapping[str, Any]] = {"gate": "hard", "scaling_rank": "total"}

    def routing_source(self, settings: Mapping[str, Any]) -> str:
        """What the gate reads, for the model card."""
        return f"numbers of K-means clusters of users ({settings[SOURCE]}, standardised)"

    def vectors(self, run: Run, arm: Arm, seed: int, folder: Path) -> Vectors:
        """The recommender's vectors, with experts, int64 [rows], in place of users' vectors."""
        found = run.vectors(arm.settings[SOURCE])
        centres = read_centroids(folder)
        own: dict[SplitName, Tensor] = {
            name: nearest(found.users[name], centres) for name in SPLITS
        }
        return replace(found, users=kept(own, run.data.splits, arm.settings["min_history"]))


def kept(
    experts: Mapping[SplitName, Tensor], splits: Mapping[SplitName, Split], min_history: int
) -> dict[SplitName, Tensor]:
    """Each user's first expert, in all its windows from then on.

    The first is that of the first window whose history has `min_history` items. The few windows
    before it keep their own, so that no window is routed by what comes after it.

    Args:
        experts: int64 [rows] by split, the expert of each window on its own.
        splits: The splits; a user's windows are in order of time, across the splits too.
        min_history: Number of items.
    """
    rows: Sequence[tuple[SplitName, Split]] = [(name, splits[name]) for name in SPLITS]
    users = np.concatenate([split.user_ids for _, split in rows])
    long = np.concatenate([split.history_lengths >= min_history for _, split in rows])
    given = torch.cat([experts[name] for name, _ in rows]).numpy()
    known, inverse = np.unique(users, return_inverse=True)
    first = np.full(len(known), len(users))
    np.minimum.at(first, inverse[long], np.flatnonzero(long))
    own = first[inverse]
    chosen = np.where(own <= np.arange(len(users)), given[own.clip(max=len(users) - 1)], given)
    parts = torch.from_numpy(chosen).split([len(split) for _, split in rows])
    return {name: part for (name, _), part in zip(rows, parts, strict=True)}
