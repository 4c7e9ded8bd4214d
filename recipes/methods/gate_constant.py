"""A control of the gate: everyone is routed by the same vector, the mean of the train users'."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from recipes.about import About
from recipes.data.splits import SplitName
from recipes.methods.gate_control import GateControl
from recipes.recommenders.vectors import Vectors


class GateConstant(GateControl):
    """iLoRA with one vector for all users.

    Vectors are standardised, so their mean is about zero. A gate without biases (`linear`, `mlp`)
    makes nothing of it and stays at its start; a `trunk` has biases, and learns one modulation a
    layer for all users.
    """

    name = "gate-constant"
    summary = "iLoRA with one vector for all users: a control of what the gate reads"
    about = About(
        title="iLoRA, one vector",
        meaning="the same adapter and gate, but everyone is routed by the mean of the train users' "
        "vectors: a control with the same parameters",
        order=73,
        ranks_by="likelihood",
        colour="#B07AA1",
        line=(0, (5, 1.5, 1, 1.5)),
    )
    reads = "the mean of the train users' vectors, for everyone"

    def exchanged(
        self, vectors: Vectors, user_ids: Mapping[SplitName, np.ndarray], seed: int
    ) -> dict[SplitName, Tensor]:
        """The mean, in every row."""
        mean = vectors.users["train"].double().mean(dim=0).float()
        return {name: mean.repeat(len(users), 1) for name, users in user_ids.items()}
