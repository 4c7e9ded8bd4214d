"""A control of the gate: every user is routed by a random vector of its own (the paper's)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from recipes.about import About
from recipes.data.splits import SplitName
from recipes.methods.gate_control import GateControl
from recipes.recommenders.vectors import Vectors


class GateRandom(GateControl):
    """iLoRA with a random vector for each user, the same in all of its windows and splits."""

    name = "gate-random"
    summary = "iLoRA with a random vector for each user: a control of what the gate reads"
    about = About(
        title="iLoRA, random vectors",
        meaning="the same adapter and gate, but every user is routed by a random vector of its "
        "own, with the mean and covariance of the train users': a control with the same parameters",
        order=74,
        ranks_by="likelihood",
        colour="#8C6BB1",
        line=(0, (1, 1.5)),
    )
    reads = "a random vector for each user, with the mean and covariance of the train users'"

    def exchanged(
        self, vectors: Vectors, user_ids: Mapping[SplitName, np.ndarray], seed: int
    ) -> dict[SplitName, Tensor]:
        """`mean + noise @ root`, where `root` is the covariance's symmetric root."""
        real = vectors.users["train"].double()
        values, axes = torch.linalg.eigh(real.T.cov())
        root = axes * values.clamp(min=0).sqrt() @ axes.T
        everyone = np.unique(np.concatenate(list(user_ids.values())))
        drawn = np.random.default_rng(seed).standard_normal((len(everyone), real.shape[1]))
        made = (real.mean(dim=0) + torch.from_numpy(drawn) @ root).float()
        return {
            name: made[torch.from_numpy(np.searchsorted(everyone, users))]
            for name, users in user_ids.items()
        }
