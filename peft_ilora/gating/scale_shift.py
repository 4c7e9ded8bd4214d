"""`B ((1 + s) * A x + t)`: a scale and a shift of every rank coordinate.

FiLM (arXiv 1709.07871) on the rank axis; adaLN-Zero's pair (arXiv 2212.09748, Section 3.2).
"""

from torch import Tensor

from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.form import GateForm, Statistics
from peft_ilora.gating.modulation import Affine
from peft_ilora.gating.statistics import deviation, moments


class ScaleShift(GateForm):
    """Coefficients are s and then t, [..., 2 * rank]."""

    def count(self, coordinates: Coordinates) -> int:
        """Return twice the rank: one s and one t for each coordinate."""
        return 2 * coordinates.rank

    def cut(self, coefficients: Tensor, widest: Coordinates, own: Coordinates) -> Tensor:
        """Cut s and t, each to the rank of the layer."""
        both = coefficients.unflatten(-1, (2, widest.rank))
        return both[..., : own.rank].flatten(-2)

    def modulation(
        self,
        coefficients: Tensor,
        coordinates: Coordinates,
        scaling: float,
        like: Tensor,
        factor: float = 1.0,
    ) -> Affine:
        """Scale each coordinate by `1 + s`, and add `scaling * t`."""
        s, t = (coefficients * scaling).chunk(2, dim=-1)
        factors = (s + scaling) * factor if factor != 1 else s + scaling
        return Affine(factors.to(like.device, like.dtype), t.to(like.device, like.dtype))

    def fold(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Multiply each column of B by its `1 + s`."""
        return coordinates.fold(b, 1 + coefficients.chunk(2, dim=-1)[0])

    def bias(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Return `B t`."""
        return coordinates.product(b, coefficients.chunk(2, dim=-1)[1])

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return rows, and the figures of `scale`, which is s, and of `shift`, which is t."""
        s, t = coefficients.chunk(2, dim=-1)
        return {"rows": coefficients.shape[0]} | moments("scale", s) | moments("shift", t)

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return deviation."""
        return {"deviation": deviation(coefficients)}
