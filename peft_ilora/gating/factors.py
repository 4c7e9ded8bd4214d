"""What forms share that multiply each rank coordinate by a factor: `B diag(factors) A`."""

from torch import Tensor

from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.form import GateForm
from peft_ilora.gating.modulation import Scale


class Factors(GateForm):
    """A form whose coefficients are, or become, one factor for each rank coordinate."""

    def factors(self, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Return the factors, [..., rank], of coefficients, [..., count]."""
        raise NotImplementedError

    def modulation(
        self,
        coefficients: Tensor,
        coordinates: Coordinates,
        scaling: float,
        like: Tensor,
        factor: float = 1.0,
    ) -> Scale:
        """Scale each coordinate by its factor; arguments as in `GateForm.modulation`."""
        scaled = self.factors(coefficients, coordinates) * (scaling * factor)
        return Scale(scaled.to(like.device, like.dtype))

    def fold(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Multiply each column of B, [out, rank / groups, ...], by its factor."""
        return coordinates.fold(b, self.factors(coefficients, coordinates))
