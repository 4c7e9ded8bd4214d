"""What a gate may do to the rank coordinates of a layer, the adapter's scaling included.

The fused products of `peft_ilora/fast` know some of these classes, by their exact type, and leave
every other one to `peft_ilora/layers`, which calls it.
"""

from dataclasses import dataclass

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
        return hidden * self.factors + self.offsets


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
        if any(length != 1 for length in matrix.shape[1:-2]):  # one for each token
            return (matrix @ hidden.unsqueeze(-1)).squeeze(-1)
        # [rows, positions, rank] @ [rows, rank, rank]
        rows = hidden.unsqueeze(1) if hidden.dim() == 2 else hidden.flatten(1, -2)
        return (rows @ matrix.flatten(0, -3).mT).view(hidden.shape)


Modulation = Scale | Affine | Square
"""What a form may hand to a layer."""
