"""What every gate form declares: layers, merging, export and inspection ask for nothing else.

A gate maps what it reads to *coefficients*, and says how these modulate the rank coordinates of a
layer, how they fold into its B, and which figures describe them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating.coordinates import Coordinates

Statistics = dict[str, float | list[float]]


@dataclass(frozen=True)
class Scale:
    """The modulation `hidden * factors`: the update becomes `B diag(factors) A x`."""

    factors: Tensor
    """Broadcasts to [..., rank]."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Modulate rank coordinates, [..., rank]."""
        return hidden * self.factors


Modulation = Scale
"""What a gate may hand to a layer; a form with another modulation makes this a union. The fused
products of `peft_ilora/fast` take scales, and leave every other modulation to `layers`."""


class GateForm(nn.Module):
    """One form of gate.

    Args:
        config: The adapter's configuration.
        width: Width of what the gate reads.
    """

    def __init__(self, config: ILoRAConfig, width: int) -> None:
        super().__init__()

    def forward(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map what the gate reads to its coefficients.

        Args:
            z: [..., width]; a form that takes ids says so.
            noise: What `draw_noise` has drawn; None: no noise.

        Returns:
            [..., coefficients]
        """
        raise NotImplementedError

    def draw_noise(self, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Draw the noise of a forward over inputs of this leading shape; None: without noise."""
        return None

    def unrouted(self, like: Tensor) -> Tensor:
        """Return the coefficients of `missing_routing="uniform"`, on the device of `like`."""
        raise NotImplementedError

    def modulation(
        self, coefficients: Tensor, coordinates: Coordinates, scaling: float, like: Tensor
    ) -> Modulation:
        """Return what a layer does to its rank coordinates.

        Args:
            coefficients: [..., coefficients] that broadcast against the layer's hidden state.
            coordinates: Rank coordinates of the layer.
            scaling: alpha over rank; a part of the modulation.
            like: The modulation takes its dtype and device.
        """
        raise NotImplementedError

    def fold(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Return B of the plain LoRA that the adapter is under one instance's coefficients.

        Merging, unmerging and export rest on this alone. A form that no B can express raises a
        ValueError that says so.

        Args:
            b: B of the layer, [out, rank / groups, ...].
            coefficients: [coefficients] of one instance, without the scaling.
            coordinates: Rank coordinates of the layer.
        """
        raise NotImplementedError

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return plain figures of coefficients, [rows, coefficients], for inspection."""
        raise NotImplementedError

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return scalar terms that a trainer may add, of coefficients [rows, coefficients]."""
        raise NotImplementedError
