"""`W x + B modulation(A dropout(x))`: a linear layer's output and its gated update, in one product.

`fused_product` serves training, `inferred_product` inference. Both take the base layer apart where
its weight is frozen, so that no pass over a tensor of full width is left.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from peft_ilora.fast.dropout import draw_mask
from peft_ilora.fast.function import GatedProduct, add_update, flat
from peft_ilora.fast.probes import bias_of, is_plain_linear, weight_of
from peft_ilora.gating.modulation import Modulation, tensors_of


def fused_product(
    base: Tensor | nn.Module,
    x: Tensor,
    downs: Sequence[Tensor],
    b: Tensor,
    modulation: Modulation,
    p: float = 0.0,
    given: Tensor | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the updated output of a linear layer, and rank coordinates of others with its input.

    Args:
        base: The base layer, or its output, [..., out].
        x: The layer's input, [..., in], of any floating dtype.
        downs: A of this layer, [rank, in], and of the others; none with `given`.
        b: [out, rank]
        modulation: What is done to the rank coordinates. It includes what makes up for dropped
            elements: kept ones are not rescaled here.
        p: Probability that dropout drops an element of `x`.
        given: The layer's rank coordinates, [..., rank], where they are known.

    Returns:
        [..., out] in the dtype of the base layer's output; [..., rank] for each of the others, to
        be passed as `given`.
    """
    mask = draw_mask(p) if p and given is None else None
    output, weight, bias = _taken_apart(base, x)
    kind, tensors = type(modulation), tensors_of(modulation)
    updated, *others = GatedProduct.apply(
        output, x, weight, bias, given, b, mask, kind, *tensors, *downs
    )
    width = b.shape[0]
    # A view made in here, past the function, may be written to: some models add to it in place.
    return updated.view(*x.shape[:-1], width), others


def inferred_product(
    base: Tensor | nn.Module, x: Tensor, a: Tensor, b: Tensor, modulation: Modulation
) -> Tensor:
    """Return the updated output, without gradients or dropout.

    This fast path is short because a decode step of a small model is as fast as its Python.

    Args:
        base: The base layer, or its output, [..., out].
        x: The layer's input, [..., in].
        a: [rank, in]
        b: [out, rank]
        modulation: What is done to the rank coordinates.
    """
    output, weight, bias = _taken_apart(base, x)
    hidden = modulation(F.linear(x if x.dtype == a.dtype else x.to(a.dtype), a))
    if weight is None or x.dtype != a.dtype:
        return add_update(output, x, weight, bias, hidden, b).view(*x.shape[:-1], b.shape[0])
    output = F.linear(x, weight, bias)
    flat(output).addmm_(flat(hidden), b.t())
    return output


def _taken_apart(
    base: Tensor | nn.Module, x: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return a base layer's output, or its weight and bias where these are frozen."""
    if isinstance(base, Tensor):
        return base, None, None
    if is_plain_linear(base):
        weight, bias = weight_of(base), bias_of(base)
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if weight.dtype == x.dtype and not trained:
            return None, weight, bias
    return base(x), None, None
