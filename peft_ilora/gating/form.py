"""What every gate form declares: layers, merging, export and inspection ask for nothing else.

A gate (`peft_ilora/gating/gate.py`) maps what it reads to logits. Its form makes *coefficients* of
them, and says how these modulate the rank coordinates of a layer, how they fold into its B, and
which figures describe them. A form holds no parameters.
"""

import torch
from torch import Tensor

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.modulation import Modulation

Statistics = dict[str, float | list[float]]


class GateForm:
    """One form of gate.

    Args:
        config: The adapter's configuration.
    """

    def __init__(self, config: ILoRAConfig) -> None:
        """Keep what the form reads of the configuration: nothing, unless a form says so."""

    def count(self, coordinates: Coordinates) -> int:
        """Return how many coefficients a layer with these rank coordinates needs."""
        raise NotImplementedError

    def coefficients(self, logits: Tensor) -> Tensor:
        """Make coefficients of logits, both [..., count]."""
        return logits

    def cut(self, coefficients: Tensor, widest: Coordinates, own: Coordinates) -> Tensor:
        """Return a layer's part of what was made for the widest layer of a model.

        Args:
            coefficients: [..., count(widest)]
            widest: Rank coordinates of the widest layer.
            own: Those of the layer.

        Returns:
            [..., count(own)]
        """
        return coefficients[..., : self.count(own)]

    def neutral(self, coordinates: Coordinates, like: Tensor) -> Tensor:
        """Return the coefficients of a plain LoRA, [count], on the device of `like`, in float32 at
        least.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.zeros(self.count(coordinates), dtype=dtype, device=like.device)

    def modulation(
        self,
        coefficients: Tensor,
        coordinates: Coordinates,
        scaling: float,
        like: Tensor,
        factor: float = 1.0,
    ) -> Modulation:
        """Return what a layer does to its rank coordinates.

        Args:
            coefficients: [..., count] that broadcast against the layer's hidden state.
            coordinates: Rank coordinates of the layer.
            scaling: alpha over rank; a part of the modulation.
            like: The modulation takes its dtype and device.
            factor: What makes up for dropped elements of the layer's input. It multiplies what
                comes from the input, and nothing else.
        """
        raise NotImplementedError

    def fold(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Return B of the plain LoRA that the adapter is under one instance's coefficients.

        With `bias`, merging, unmerging and export rest on this alone.

        Args:
            b: B of the layer, [out, rank / groups, ...].
            coefficients: [count] of one instance, without the scaling.
            coordinates: Rank coordinates of the layer.
        """
        raise NotImplementedError

    def bias(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor | None:
        """Return the bias on B of that plain LoRA, [out], without the scaling; None: it has none.

        Args:
            b: B of the layer as it is, not folded.
            coefficients: [count] of one instance.
            coordinates: Rank coordinates of the layer.
        """
        return None

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return plain figures of coefficients, [rows, count], for inspection."""
        raise NotImplementedError

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return scalar terms that a trainer may add, of coefficients [rows, count]."""
        raise NotImplementedError
