"""What methods share whose experts belong to clusters of users, by K-means and not by a gate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from recipes.artifacts import read_tensors, write_tensors
from recipes.experiment import Experiment
from recipes.methods.adapter import SOURCE
from recipes.methods.clusters import centroids
from recipes.methods.ilora import CLUSTERS, RANKS, ILoRA
from recipes.methods.method import Arm
from recipes.run import Run

CENTROIDS = "centroids.safetensors"
"""Its tensor `centroids`, float32 [K, d], has the clusters' centroids among the recommender's
standardised representations of users."""


class ClusteredILoRA(ILoRA):
    """The experts of `ILoRA`, each of which belongs to a cluster of users.

    Centroids are found before the training and stored beside the adapter, which is read with them:
    K-means need not find the same ones, or in the same order, on another machine.
    """

    unread = frozenset({"gate_learning_rate_scale"})
    derived: ClassVar[frozenset[str]] = ILoRA.derived | {
        *("gate_form", "gate_input", "gate_scope", "gate_init", "top_k", "noise_std"),
        *("temperature", "missing_routing"),
    }
    version = 5

    def check_clusters(self, experiment: Experiment, given: Mapping[str, Any]) -> None:
        """Refuse experts that follow from other clusters (ValueError)."""
        raise ValueError(
            f"method {self.name}: {RANKS}={CLUSTERS!r}: each expert is a cluster's already, by "
            "adapt.num_experts: leave it out"
        )

    def train(self, run: Run, arm: Arm, seed: int, folder: Path) -> None:
        """Train the adapter and the projector; the centroids are found first."""
        path = folder / CENTROIDS
        if not path.exists():  # else a killed training has found them
            known = run.vectors(arm.settings[SOURCE]).users["train"]
            write_tensors(path, {"centroids": centroids(known, arm.settings["num_experts"])})
        super().train(run, arm, seed, folder)


def read_centroids(folder: Path) -> Tensor:
    """The centroids that the adapter in `folder` is trained with, float32 [K, d]."""
    return read_tensors(folder / CENTROIDS)["centroids"]
