"""`B (A x + t)`: the routing is a bias in the middle of every layer, and multiplies nothing.

The additive half of adaLN (arXiv 2212.09748) on the rank axis: what `scale` is told, without its
product with the input.
"""

from torch import Tensor

from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.form import GateForm, Statistics
from peft_ilora.gating.modulation import Affine
from peft_ilora.gating.statistics import deviation, moments


class Shift(GateForm):
    """Coefficients are t, [..., rank]."""

    def count(self, coordinates: Coordinates) -> int:
        """Return the rank: one t for each coordinate."""
        return coordinates.rank

    def modulation(
        self,
        coefficients: Tensor,
        coordinates: Coordinates,
        scaling: float,
        like: Tensor,
        factor: float = 1.0,
    ) -> Affine:
        """Add `scaling * t`."""
        offsets = (coefficients * scaling).to(like.device, like.dtype)
        return Affine(offsets.new_full((1,), scaling * factor), offsets)

    def fold(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Return B as it is: what is routed is the bias."""
        return b

    def bias(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Return `B t`."""
        return coordinates.product(b, coefficients)

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return rows, and the figures of `shift`, which is t."""
        return {"rows": coefficients.shape[0]} | moments("shift", coefficients)

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return deviation."""
        return {"deviation": deviation(coefficients)}
