"""What a gate may do to the rank coordinates of a layer, the adapter's scaling included.

The fused products of `peft_ilora/fast` know some of these classes, by their exact type, and leave
every other one to `peft_ilora/layers`, which calls it. What is made for all layers at once has one
more dimension in front, and is `split` into what each layer does.
"""

import math
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

    def split(self) -> tuple["Scale", ...]:
        """Return the modulation of each layer, of one with a dimension of layers in front."""
        return tuple(map(Scale, self.factors.unbind()))


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

    def split(self) -> tuple["Affine", ...]:
        """Return the modulation of each layer, of one with a dimension of layers in front."""
        offsets = self.offsets.unbind()
        alike = self.factors.dim() == 1
        factors = [self.factors] * len(offsets) if alike else self.factors.unbind()
        return tuple(map(Affine, factors, offsets))


@dataclass(frozen=True)
class Square:
    """The modulation `matrix @ hidden`: the update becomes `B matrix A x`."""

    matrix: Tensor
    """[rank, rank], or [rows, 1, ..., rank, rank] of rows, or [..., rank, rank] of tokens."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Modulate rank coordinates, [..., rank]."""
        matrix = self.matrix if self.matrix.dtype == hidden.dtype else self.matrix.to(hidden.dtype)
        if matrix.dim() == 2:
            return hidden @ matrix.mT
        right = matrix.flatten(0, -3).mT  # [matrices, rank, rank]
        if hidden.dim() == 3 and hidden.shape[0] == right.shape[0]:
            return torch.bmm(hidden, right)
        return torch.bmm(stacked(hidden, right.shape[0]), right).view(hidden.shape)

    def split(self) -> tuple["Square", ...]:
        """Return the modulation of each layer, of one with a dimension of layers in front."""
        return tuple(map(Square, self.matrix.unbind()))


def stacked(hidden: Tensor, matrices: int) -> Tensor:
    """[..., rank] -> [matrices, positions, rank]: those that have the same matrix."""
    tokens = math.prod(hidden.shape[:-1])
    return hidden.reshape(matrices, tokens // max(matrices, 1), hidden.shape[-1])


Modulation = Scale | Affine | Square
"""What a form may hand to a layer: a dataclass of tensors."""


def tensors_of(modulation: Modulation) -> tuple[Tensor, ...]:
    """Return the tensors of a modulation, in the order in which its class takes them."""
    return tuple(getattr(modulation, name) for name in type(modulation).__match_args__)
