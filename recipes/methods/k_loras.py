"""K separate LoRAs: each belongs to a cluster of users, which no gate has learned.

A user's representation is near one of K centroids (K-means on the train windows). `swapped` gives
the user that cluster's LoRA alone, and mixes nothing. `mixed` weighs all of them by a softmax over
distances, as iLoRA (arXiv 2408.10159) does by a learned gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel

from peft_ilora import ILoRAConfig
from peft_ilora.saving import GATES
from recipes.about import About
from recipes.experiment import GatedSettings
from recipes.llm.adapter_plan import AdapterPlan
from recipes.methods.adapter import SOURCE
from recipes.methods.clustered import ClusteredILoRA, read_centroids
from recipes.methods.clusters import log_weights, spread
from recipes.methods.method import Arm
from recipes.recommenders.vectors import Vectors
from recipes.run import Run

Assignment = Literal["swapped", "mixed"]
SCALING = {"swapped": "total", "mixed": "expert"}
"""The plugin's `scaling_rank`. Under either, what a user gets is scaled as plain LoRA is: one LoRA
of weight 1, or K of weights around 1 / K."""


@dataclass(kw_only=True)
class KLoRAsSettings(GatedSettings):
    """Further settings of K separate LoRAs."""

    assignment: Assignment = "swapped"
    """`swapped`: a user gets the LoRA of the nearest centroid. `mixed`: all of them, weighted by
    `softmax(-d^2 / s)`, where d is the distance to a centroid and s the mean squared distance of
    train windows to their nearest one."""


class KLoRAs(ClusteredILoRA):
    """`num_experts` LoRAs of rank `rank / num_experts` each: together the parameters of one LoRA.

    They are iLoRA's experts under weights that are given. What stands in for the gate is the
    identity, which is not trained, so the count of the gate's parameters is 0. A swapped
    LoRA gets gradients from its own cluster's rows alone (Adam's momentum moves it in a batch that
    has none of them, too), at the learning rate and in the number of steps of the other arms.
    """

    name = "k-loras"
    summary = "K separate LoRAs, one for each K-means cluster of users: swapped, or mixed"
    about = About(
        title="K LoRAs",
        meaning="separate LoRAs, together of the same total rank, one for each cluster of users by "
        "K-means of their representations",
        order=64,
        ranks_by="likelihood",
        colour="#CC79A7",
        line=(0, (4, 2)),
    )
    Config = KLoRAsSettings
    derived = ClusteredILoRA.derived | {"gate", "scaling_rank"}

    def peft_config(self, settings: Mapping[str, Any], routing_dim: int) -> ILoRAConfig:
        """Configuration of the experts, which are routed by logarithms of K weights."""
        own = {"scaling_rank": SCALING[settings["assignment"]]}
        options = {**settings["options"], **own}
        return super().peft_config({**settings, "options": options}, settings["num_experts"])

    def routing_source(self, settings: Mapping[str, Any]) -> str:
        """What the gate reads, for the model card."""
        return (
            f"logarithms of the weights of K-means clusters of {super().routing_source(settings)}"
        )

    def vectors(self, run: Run, arm: Arm, seed: int, folder: Path) -> Vectors:
        """The recommender's vectors, with logarithms of weights, [rows, K], in place of users'."""
        found = run.vectors(arm.settings[SOURCE])
        centres = read_centroids(folder)
        mixed = arm.settings["assignment"] == "mixed"
        scale = spread(found.users["train"], centres) if mixed else None
        weights = {name: log_weights(own, centres, scale) for name, own in found.users.items()}
        return replace(found, users=weights)

    def plan(self, run: Run, arm: Arm, seed: int) -> AdapterPlan:
        """The plan of experts whose weights are given."""
        return replace(super().plan(run, arm, seed), start=hand_on)


@torch.no_grad()
def hand_on(model: PeftModel) -> None:
    """Let the gate return what it reads, and take it out of training."""
    for name, parameter in model.named_parameters():
        if GATES in name:
            torch.nn.init.eye_(parameter)
            parameter.requires_grad_(False)
