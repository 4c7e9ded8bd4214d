"""`B diag(1 + s) A`: every rank coordinate has a factor of its own, of either sign and any size.

The scale of adaLN-Zero (arXiv 2212.09748, Section 3.2) on the rank axis; the diagonal core of
Zhyper (arXiv 2510.19733) with a one added, so that zeros make a plain LoRA.
"""

from torch import Tensor

from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.form import GateForm, Statistics
from peft_ilora.gating.modulation import Scale
from peft_ilora.gating.statistics import deviation, moments


class SignedScale(GateForm):
    """Coefficients are s, [..., rank]."""

    def count(self, coordinates: Coordinates) -> int:
        """Return the rank: one s for each coordinate."""
        return coordinates.rank

    def modulation(
        self,
        coefficients: Tensor,
        coordinates: Coordinates,
        scaling: float,
        like: Tensor,
        factor: float = 1.0,
    ) -> Scale:
        """Scale each coordinate by `1 + s`."""
        return Scale(((1 + coefficients) * (scaling * factor)).to(like.device, like.dtype))

    def fold(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Multiply each column of B by its `1 + s`."""
        return coordinates.fold(b, 1 + coefficients)

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return rows, and the figures of `scale`, which is s."""
        return {"rows": coefficients.shape[0]} | moments("scale", coefficients)

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return deviation."""
        return {"deviation": deviation(coefficients)}
