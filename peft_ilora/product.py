"""`result + B (scale * A dropout(x))` of a linear layer.

What is kept for the backward pass is the layer's input as it came and the rank coordinates, nothing
else of the input's or the output's size: where there is dropout or another dtype, one autograd
function computes the dropped (`peft_ilora/dropout.py`) or cast input again. The addition is fused
into the product with B.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_ilora.dropout import DropMask, draw_mask, dropped

_SMALL = 2**15
"""Output elements up to which an addition of its own costs less than the fused one's views."""


def gated_product(
    result: Tensor,
    x: Tensor,
    lora_a: nn.Module,
    lora_b: nn.Module,
    dropout: nn.Module,
    scale: Tensor | float,
    cast: bool = True,
) -> Tensor:
    """Add a gated update to the output of a linear layer.

    Args:
        result: The base layer's output, [..., out].
        x: Its input, [..., in], of any floating dtype.
        lora_a: Linear(in, rank) without a bias, or what wraps it.
        lora_b: Linear(rank, out) without a bias, or what wraps it.
        dropout: `nn.Dropout`, or `nn.Identity`.
        scale: Of the rank coordinates; broadcasts to [..., rank].
        cast: Take `x` to the dtype of A; without it hooks of A may choose one.

    Returns:
        [..., out], in the dtype of `result`.
    """
    if not (cast and _is_plain(x, lora_a, lora_b, dropout)):
        x = x.to(adapter_weight(lora_a, x).dtype) if cast else x
        hidden = lora_a(dropout(x))
        return (result + lora_b(hidden * scale)).to(result.dtype)
    p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    mask = draw_mask(p) if p else None
    if mask is not None:
        scale = scale * mask.rescale
    a, b = lora_a._parameters["weight"], lora_b._parameters["weight"]
    assert a is not None and b is not None
    copies = mask is not None or x.dtype != a.dtype  # which autograd would keep
    if copies and torch.is_grad_enabled():
        # A view made in here, past the function, may be written to: some models add to it in place.
        return _GatedProduct.apply(result, x, a, b, scale, mask).view(result.shape)
    hidden = _rank_coordinates(x, a, _kept(mask, x)) * scale
    if result.numel() <= _SMALL and result.dtype == hidden.dtype:
        return result + F.linear(hidden, b)
    return _added(result, hidden, b).view(result.shape)


def adapter_weight(lora_a: nn.Module, otherwise: Tensor) -> Tensor:
    """The weight of A, for its dtype and device, or another tensor where a wrapper (FSDP's) hides
    it. Of an offloaded weight, which accelerate loads when A is called, only the dtype holds.
    """
    weight = lora_a._parameters["weight"] if isinstance(lora_a, nn.Linear) else None
    if weight is None:
        return otherwise
    return otherwise.to(weight.dtype) if weight.is_meta else weight


def _is_plain(x: Tensor, lora_a: nn.Module, lora_b: nn.Module, dropout: nn.Module) -> bool:
    """Whether nothing else wants to see the parts: compilers, autocast, hooks, sharded weights.

    The answer is the same when a checkpointed block is recomputed, so its dropout is too.
    """
    device = x.device.type
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(device):
        return False
    if type(dropout) not in (nn.Dropout, nn.Identity) or device not in ("cpu", "cuda"):
        return False
    if torch._C._are_functorch_transforms_active():  # vmap, grad: they see through plain calls only
        return False
    return _is_plain_linear(lora_a) and _is_plain_linear(lora_b)


def _is_plain_linear(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "_hf_hook" in vars(module):  # accelerate's, which loads
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if module._backward_hooks or module._backward_pre_hooks:
        return False
    weight = module._parameters["weight"]
    return type(weight) in (nn.Parameter, Tensor) and "ds_id" not in vars(weight)  # DeepSpeed's


def _kept(mask: DropMask | None, x: Tensor) -> Tensor | None:
    return None if mask is None else mask.kept(x)


def _rank_coordinates(x: Tensor, a: Tensor, kept: Tensor | None) -> Tensor:
    """[..., in] -> [..., rank]"""
    return F.linear(dropped(x.to(a.dtype), kept), a)


def _added(result: Tensor, scaled: Tensor, b: Tensor) -> Tensor:
    """[..., out] and [..., rank] -> [tokens, out], in the dtype of `result`."""
    if torch.promote_types(result.dtype, b.dtype) == b.dtype:
        updated = torch.addmm(_flat(result.to(b.dtype)), _flat(scaled), b.t())
    else:  # an adapter of lower precision than the base
        updated = _flat(result) + _flat(scaled) @ b.t()
    return updated.to(result.dtype)


def _flat(x: Tensor) -> Tensor:
    """[..., width] -> [tokens, width]; one vector is one token."""
    return x.reshape(-1, x.shape[-1])


class _GatedProduct(torch.autograd.Function):
    """The updated output, [tokens, out]; its backward pass draws the dropped input again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        result: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        scale: Tensor | float,
        mask: DropMask | None,
    ) -> Tensor:
        hidden = _rank_coordinates(x, a, _kept(mask, x))
        ctx.shape, ctx.mask = result.shape, mask
        ctx.constant = None if isinstance(scale, Tensor) else scale
        ctx.save_for_backward(x, a, b, hidden, *(() if ctx.constant is not None else (scale,)))
        return _added(result, hidden * scale, b)

    @staticmethod
    def backward(ctx: Any, of_result: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, a, b, hidden, *rest = ctx.saved_tensors
        scale = rest[0] if rest else ctx.constant
        _, wants_x, wants_a, wants_b, wants_scale, _ = ctx.needs_input_grad
        kept = _kept(ctx.mask, x)
        if torch.is_grad_enabled():  # a second derivative: what is kept has no history
            hidden = _rank_coordinates(x, a, kept)
        # [tokens, out], [tokens, rank]
        of_out = of_result.to(b.dtype)
        of_scaled = (of_out @ b).view(hidden.shape)
        of_hidden = of_scaled * scale
        of_x = of_a = of_b = of_scale = None
        if wants_b:
            of_b = (_flat(hidden * scale).t() @ of_out).t()
        if wants_scale:
            of_scale = (of_scaled * hidden).sum_to_size(scale.shape)
        if wants_a:
            of_a = _flat(of_hidden).t() @ _flat(dropped(x.to(a.dtype), kept))
        if wants_x:
            of_x = dropped(of_hidden @ a, kept).to(x.dtype)
        return of_result.view(ctx.shape), of_x, of_a, of_b, of_scale, None
