"""What the controls of a gate share: iLoRA whose gate reads other vectors than its user's own."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from peft_ilora import ILoRAConfig
from recipes.data.splits import SplitName
from recipes.methods.adapter import SOURCE
from recipes.methods.ilora import ILoRA
from recipes.methods.method import Arm
from recipes.recommenders.vectors import Vectors
from recipes.run import Run


class GateControl(ILoRA):
    """The same adapter, gate, prompts and training as `ILoRA`; only what the gate reads differs.

    The slots of the prompt keep their items' own vectors.
    """

    reads: str
    """What the gate reads, for the model card."""

    @abstractmethod
    def exchanged(
        self, vectors: Vectors, user_ids: Mapping[SplitName, np.ndarray], seed: int
    ) -> dict[SplitName, Tensor]:
        """What the gate reads in place of each row's own vector.

        Args:
            vectors: The recommender's vectors.
            user_ids: int64 [rows] by split, user id of each row.
            seed: Training seed of the adapter, of which all draws are made.

        Returns:
            float32 [rows, d] by split.
        """

    def vectors(self, run: Run, arm: Arm, seed: int, folder: Path) -> Vectors:
        """The recommender's vectors, those of users exchanged, in training and in evaluation."""
        own = super().vectors(run, arm, seed, folder)
        assert own is not None
        user_ids: dict[SplitName, np.ndarray] = {
            name: run.data.split(name).user_ids for name in own.users
        }
        return replace(own, users=self.exchanged(own, user_ids, seed))

    def peft_config(self, settings: Mapping[str, Any], routing_dim: int) -> ILoRAConfig:
        """The configuration of iLoRA; refuses a gate that reads no user's vector (ValueError)."""
        read = settings["options"].get("gate_input", "routing")
        if read != "routing":
            raise ValueError(
                f"method {self.name}: gate_input={read!r} reads no vector of a user that could be "
                "exchanged: leave gate_input out"
            )
        return super().peft_config(settings, routing_dim)

    def routing_source(self, settings: Mapping[str, Any]) -> str:
        """What the gate reads, for the model card."""
        return f"{self.reads} ({settings[SOURCE]}, standardised)"
