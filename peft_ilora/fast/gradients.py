"""Gradients of the modulations that the fused products take: all of them are of rank width.

A modulation is a dataclass of tensors. A class that is not in `GRADIENTS` is left to the plain
layers, which only call it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from peft_ilora.gating.modulation import Affine, Modulation, Scale, Square, stacked

Gradients = tuple[Tensor, tuple[Tensor | None, ...]]
"""Of the rank coordinates, [..., rank], and of each tensor of the modulation."""


def taken_apart(
    kind: type[Modulation], tensors: Sequence[Tensor]
) -> tuple[Modulation, Sequence[Tensor]]:
    """Return a modulation of a class, made of the first of some tensors, and the others."""
    count = len(kind.__match_args__)
    return kind(*tensors[:count]), tensors[count:]


def gradients(
    modulation: Modulation, hidden: Tensor, grad: Tensor, wanted: Sequence[bool]
) -> Gradients:
    """Return the gradients of `modulation(hidden)`, as a function that can be differentiated.

    Args:
        modulation: Of a class in `GRADIENTS`.
        hidden: The rank coordinates, [..., rank].
        grad: The gradient of the result, [..., rank].
        wanted: Which tensors of the modulation need a gradient.
    """
    return GRADIENTS[type(modulation)](modulation, hidden, grad, wanted)


def _of_scale(scale: Scale, hidden: Tensor, grad: Tensor, wanted: Sequence[bool]) -> Gradients:
    return grad * scale.factors, (_of_factors(scale.factors, hidden, grad, wanted[0]),)


def _of_affine(affine: Affine, hidden: Tensor, grad: Tensor, wanted: Sequence[bool]) -> Gradients:
    of_factors = _of_factors(affine.factors, hidden, grad, wanted[0])
    of_offsets = grad.sum_to_size(affine.offsets.shape) if wanted[1] else None
    return grad * affine.factors, (of_factors, of_offsets)


def _of_square(square: Square, hidden: Tensor, grad: Tensor, wanted: Sequence[bool]) -> Gradients:
    matrix = square.matrix
    of_hidden = Square(matrix.mT)(grad)
    if not wanted[0]:
        return of_hidden, (None,)
    matrices = math.prod(matrix.shape[:-2])
    outer = stacked(grad, matrices).mT @ stacked(hidden, matrices)
    return of_hidden, (outer.view(matrix.shape),)


def _of_factors(factors: Tensor, hidden: Tensor, grad: Tensor, wanted: bool) -> Tensor | None:
    return (grad * hidden).sum_to_size(factors.shape) if wanted else None


GRADIENTS: dict[type, Callable[[Any, Tensor, Tensor, Sequence[bool]], Gradients]] = {
    Scale: _of_scale,
    Affine: _of_affine,
    Square: _of_square,
}
"""Of each class of modulation that the fused products take, by exact type."""
