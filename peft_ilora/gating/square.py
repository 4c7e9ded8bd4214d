"""`B (I + M) A`: a full matrix between A and B, for small ranks.

The square core of Zhyper (arXiv 2510.19733) with the identity added, so that zeros make a plain
LoRA.
"""

import torch
from torch import Tensor

from peft_ilora.gating.coordinates import Coordinates, check_whole
from peft_ilora.gating.form import GateForm, Statistics
from peft_ilora.gating.modulation import Square
from peft_ilora.gating.statistics import deviation, moments


class SquareCore(GateForm):
    """Coefficients are M, row by row, [..., rank * rank]."""

    def count(self, coordinates: Coordinates) -> int:
        """Return the square of the rank."""
        return coordinates.rank**2

    def cut(self, coefficients: Tensor, widest: Coordinates, own: Coordinates) -> Tensor:
        """Cut rows and columns of M to the rank of the layer."""
        matrix = coefficients.unflatten(-1, (widest.rank, widest.rank))
        return matrix[..., : own.rank, : own.rank].flatten(-2)

    def modulation(
        self,
        coefficients: Tensor,
        coordinates: Coordinates,
        scaling: float,
        like: Tensor,
        factor: float = 1.0,
    ) -> Square:
        """Multiply the coordinates by `I + M`."""
        core = _core(coefficients, coordinates) * (scaling * factor)
        return Square(core.to(like.device, like.dtype))

    def fold(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Multiply B by `I + M`."""
        check_whole(b)
        core = _core(coefficients, coordinates).to(b.device)
        dtype = torch.promote_types(b.dtype, core.dtype)
        # [out, rank, ...] x [rank, rank] -> [out, rank, ...]
        return torch.einsum("oi...,ij->oj...", b.to(dtype), core.to(dtype)).to(b.dtype)

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return rows, and the figures of `matrix`, which is M."""
        return {"rows": coefficients.shape[0]} | moments("matrix", coefficients)

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return deviation."""
        return {"deviation": deviation(coefficients)}


def _core(coefficients: Tensor, coordinates: Coordinates) -> Tensor:
    """Return `I + M`, [..., rank, rank]."""
    rank = coordinates.rank
    identity = torch.eye(rank, dtype=coefficients.dtype, device=coefficients.device)
    return coefficients.unflatten(-1, (rank, rank)) + identity
