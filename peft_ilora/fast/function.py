"""The autograd function behind the fused products: `output + B modulation(A dropout(x))`.

For the backward pass it keeps the layer's input as it came and the rank coordinates, and nothing
else of the input's or the output's size: the dropped (`peft_ilora/fast/dropout.py`) or cast input
is computed again. The update is added inside of the product with B, in place where the base layer's
output is made here too, and its gradient inside of the product with A.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_ilora.fast.dropout import DropMask
from peft_ilora.fast.gradients import gradients, taken_apart
from peft_ilora.gating.modulation import Modulation


class GatedProduct(torch.autograd.Function):
    """Computes the updated output, [tokens, out], and the rank coordinates of other layers.

    Layers that read the same input (`peft_ilora/fast/siblings.py`) share one mask, one product with
    all their A, and one gradient of the input. The arguments are those of `fused_product`, with the
    base layer as its `output` or as its frozen `weight` and `bias`, and the modulation as its class
    and its tensors, which come before every A.
    """

    @staticmethod
    def forward(  # noqa: D102  # type: ignore[override]
        ctx: Any,
        output: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        given: Tensor | None,
        b: Tensor,
        mask: DropMask | None,
        kind: type[Modulation],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        modulation, downs = taken_apart(kind, tensors)
        hidden, others = given, ()
        if hidden is None:
            hidden, others = _rank_coordinates(_seen(x, downs[0], mask)[0], downs)
        ctx.mask, ctx.kind = mask, kind
        ctx.shapes = None if output is None else output.shape, x.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if downs else None, weight, hidden, b, *tensors)
        return add_update(output, x, weight, bias, modulation(hidden), b), *others

    @staticmethod
    def backward(  # noqa: D102  # type: ignore[override]
        ctx: Any, grad_output: Tensor | None, *grad_others: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, hidden, b, *tensors = ctx.saved_tensors
        wants_output, wants_x, _, _, wants_given, wants_b, _, _, *wanted = ctx.needs_input_grad
        modulation, downs = taken_apart(ctx.kind, tensors)
        seen, kept = _seen(x, downs[0], ctx.mask) if downs else (None, None)
        if seen is not None and torch.is_grad_enabled():
            hidden, _ = _rank_coordinates(seen, downs)  # what is saved has no history
        grad_hidden = grad_b = grad_x = None
        grad_modulation: Sequence[Tensor | None] = [None] * (len(tensors) - len(downs))
        if grad_output is not None:
            # [tokens, out] -> [..., rank], [out, rank], [tokens, in]
            grad_out = grad_output.to(b.dtype)
            grad_modulated = (grad_out @ b).view(hidden.shape)
            grad_hidden, grad_modulation = gradients(modulation, hidden, grad_modulated, wanted)
            grad_b = (flat(modulation(hidden)).t() @ grad_out).t() if wants_b else None
            grad_x = grad_output @ weight if wants_x and weight is not None else None
        grad_downs: Sequence[Tensor | None] = ()
        if seen is not None:
            grad_hiddens = (grad_hidden, *grad_others)
            grad_x, grad_downs = _input_gradients(
                grad_x, downs, grad_hiddens, seen, kept, x.dtype, wants_x
            )
        output_shape, x_shape = ctx.shapes
        return (
            grad_output.view(output_shape) if wants_output and grad_output is not None else None,
            None if grad_x is None else grad_x.view(x_shape),
            None,
            None,
            grad_hidden if wants_given else None,
            grad_b,
            None,
            None,
            *grad_modulation,
            *grad_downs,
        )


def _input_gradients(
    grad_base: Tensor | None,
    downs: Sequence[Tensor],
    grad_hiddens: Sequence[Tensor | None],
    seen: Tensor,
    kept: Tensor | None,
    dtype: torch.dtype,
    wants_x: bool,
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """Return the gradients of the input, [tokens, in], and of each A.

    Args:
        grad_base: The input's gradient through the base layer; it is written to.
        downs: A of every layer that shares the input.
        grad_hiddens: Gradients of their rank coordinates; None for a layer that has not run, whose
            A then has no gradient either.
        seen: The input as A sees it.
        kept: Which of its elements dropout keeps.
        dtype: Dtype of the input.
        wants_x: Whether the input needs a gradient.
    """
    ran = [index for index, of in enumerate(grad_hiddens) if of is not None]
    grad_downs: list[Tensor | None] = [None] * len(downs)
    if not ran:
        return grad_base, grad_downs
    given = [of for of in grad_hiddens if of is not None]
    grad_wide = flat(given[0] if len(given) == 1 else torch.cat(given, dim=-1))
    grad_stacked = grad_wide.t() @ flat(seen)
    for index, part in zip(ran, grad_stacked.split([of.shape[-1] for of in given]), strict=True):
        grad_downs[index] = part.clone() if len(ran) > 1 else part  # each in memory of its own
    if not wants_x:
        return None, grad_downs
    stacked = _stacked([downs[index] for index in ran])
    if kept is None and grad_base is not None and grad_base.dtype == stacked.dtype:
        return grad_base.addmm_(grad_wide, stacked), grad_downs
    grad_a = grad_wide @ stacked
    grad_a = (grad_a if kept is None else grad_a.mul_(flat(kept))).to(dtype)
    return grad_a if grad_base is None else grad_base.add_(grad_a), grad_downs


def add_update(
    output: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scaled: Tensor,
    b: Tensor,
) -> Tensor:
    """Add B's product to the base layer's output: [tokens, out], in the dtype of that output.

    Args:
        output: The base layer's output, [..., out]; None: computed here and written to.
        x: The input, [..., in].
        weight: The base layer's weight, where `output` is None.
        bias: Its bias.
        scaled: The modulated rank coordinates, [..., rank].
        b: [out, rank]
    """
    scaled, up = flat(scaled), b.t()
    if output is None:
        assert weight is not None
        output = F.linear(flat(x), weight, bias)
        if output.dtype == b.dtype:
            return output.addmm_(scaled, up)
    else:
        output = flat(output)
    if torch.promote_types(output.dtype, b.dtype) == b.dtype:
        return torch.addmm(output.to(b.dtype), scaled, up).to(output.dtype)
    return (output + scaled @ up).to(output.dtype)  # an adapter of lower precision than the base


def flat(x: Tensor) -> Tensor:
    """[..., width] -> [tokens, width]; one vector is one token."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _seen(x: Tensor, a: Tensor, mask: DropMask | None) -> tuple[Tensor, Tensor | None]:
    """Return the input as A sees it, and which of its elements are kept, as numbers."""
    x = x.to(a.dtype)
    kept = None if mask is None else mask.kept(x)
    return (x if kept is None else x * kept), kept


def _rank_coordinates(seen: Tensor, downs: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """Return [..., in] times the first A, [..., rank], and times each other one."""
    wide = F.linear(seen, _stacked(downs))
    if len(downs) == 1:
        return wide, ()
    first, *others = wide.split([a.shape[0] for a in downs], dim=-1)
    return first, others


def _stacked(downs: Sequence[Tensor]) -> Tensor:
    return downs[0] if len(downs) == 1 else torch.cat(tuple(downs))
