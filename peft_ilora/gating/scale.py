"""`B diag(1 + s) A`: every rank coordinate has a factor of its own, of either sign and any size.

The scale of adaLN-Zero (arXiv 2212.09748, Section 3.2) on the rank axis; the diagonal core of
Zhyper (arXiv 2510.19733) with a one added, so that zeros make a plain LoRA.
"""

from torch import Tensor

from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.factors import Factors
from peft_ilora.gating.form import Statistics
from peft_ilora.gating.statistics import deviation, moments


class SignedScale(Factors):
    """Coefficients are s, [..., rank]."""

    def count(self, coordinates: Coordinates) -> int:
        """Return the rank: one s for each coordinate."""
        return coordinates.rank

    def factors(self, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Return `1 + s`."""
        return 1 + coefficients

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return rows, and the figures of `scale`, which is s."""
        return {"rows": coefficients.shape[0]} | moments("scale", coefficients)

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return deviation."""
        return {"deviation": deviation(coefficients)}
