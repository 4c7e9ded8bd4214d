"""`B diag(2 sigmoid(s)) A`: every rank coordinate has a factor of its own, between 0 and 2."""

import torch
from torch import Tensor

from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.factors import Factors
from peft_ilora.gating.form import Statistics
from peft_ilora.gating.statistics import deviation, moments


class Sigmoid(Factors):
    """Coefficients are the factors, `2 sigmoid(logits)`; logits of zero make a plain LoRA.

    Unlike a softmax's weights the factors do not compete (arXiv 2405.13997 on sigmoid gates).
    """

    def count(self, coordinates: Coordinates) -> int:
        """Return the rank: one factor for each coordinate."""
        return coordinates.rank

    def coefficients(self, logits: Tensor) -> Tensor:
        """Return the factors, [..., rank]."""
        return 2 * torch.sigmoid(logits)

    def neutral(self, coordinates: Coordinates, like: Tensor) -> Tensor:
        """Return ones."""
        return super().neutral(coordinates, like) + 1

    def factors(self, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Return the coefficients as they are."""
        return coefficients

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return rows, and the figures of `factor`."""
        return {"rows": coefficients.shape[0]} | moments("factor", coefficients)

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return deviation."""
        return {"deviation": deviation(coefficients - 1)}
