"""What a gate may do to the rank coordinates of a layer, the adapter's scaling included.

The fused products of `peft_ilora/fast` know some of these classes, by their exact type, and leave
every other one to `peft_ilora/layers`, which calls it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """The modulation `hidden * factors`: the update becomes `B diag(factors) A x`."""

    factors: Tensor
    """Broadcasts to [..., rank]."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Modulate rank coordinates, [..., rank]."""
        return hidden * self.factors


@dataclass(frozen=True)
class Affine:
    """The modulation `hidden * factors + offsets`: the update has a part that no input reaches."""

    factors: Tensor
    """Broadcasts to [..., rank]; [1], without gradients, where nothing but the offsets is routed.
    What makes up for dropped elements is in here, and not in the offsets."""
    offsets: Tensor
    """Broadcasts to [..., rank]."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Modulate rank coordinates, [..., rank]."""
        return torch.addcmul(self.offsets, hidden, self.factors)


@dataclass(frozen=True)
class Square:
    """The modulation `matrix @ hidden`: the update becomes `B matrix A x`."""

    matrix: Tensor
    """[..., rank, rank], whose leading dimensions broadcast to those of the rank coordinates."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Modulate rank coordinates, [..., rank]."""
        matrix = self.matrix.to(hidden.dtype)
        if matrix.dim() == 2:
            return hidden @ matrix.mT
        if self.of_tokens:
            return (matrix @ hidden.unsqueeze(-1)).squeeze(-1)
        # [rows, positions, rank] @ [rows, rank, rank]
        return (by_rows(hidden) @ matrix.flatten(0, -3).mT).view(hidden.shape)

    @property
    def of_tokens(self) -> bool:
        """Whether positions of one row have matrices of their own."""
        return any(length != 1 for length in self.matrix.shape[1:-2])


def by_rows(hidden: Tensor) -> Tensor:
    """[rows, ..., rank] -> [rows, positions, rank]"""
    return hidden.unsqueeze(1) if hidden.dim() == 2 else hidden.flatten(1, -2)


Modulation = Scale | Affine | Square
"""What a form may hand to a layer."""
