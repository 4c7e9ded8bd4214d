"""`result + B (scale * A dropout(x))` of a linear layer: as one autograd function, or composed.

The function keeps the layer's input as it came and the rank coordinates, nothing else of the
input's or the output's size: neither the dropped input nor its mask (`peft_ilora/dropout.py`), nor
a copy in the adapter's dtype. The addition is fused into the product with B.
"""

from typing import Any

import torch
from torch import Tensor, nn

from peft_ilora.dropout import DropMask, draw_mask


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
    mask = draw_mask(p)
    if mask is not None:
        scale = scale * mask.rescale
    assert isinstance(lora_a, nn.Linear) and isinstance(lora_b, nn.Linear)
    operands = (result, x, lora_a.weight, lora_b.weight, scale, mask)
    product = _GatedProduct.apply if torch.is_grad_enabled() else _forward
    # A view made in here, past the function, may be written to: some models add to it in place.
    return product(*operands)[0].view(result.shape)


def adapter_weight(lora_a: nn.Module, otherwise: Tensor) -> Tensor:
    """The weight of A, for its dtype and device, or another tensor where a wrapper (FSDP's) hides
    it. Of an offloaded weight, which accelerate loads when A is called, only the dtype holds.
    """
    if not isinstance(lora_a, nn.Linear):
        return otherwise
    return otherwise.to(lora_a.weight.dtype) if lora_a.weight.is_meta else lora_a.weight


def _is_plain(x: Tensor, lora_a: nn.Module, lora_b: nn.Module, dropout: nn.Module) -> bool:
    """Whether nothing else wants to see the parts: compilers, autocast, hooks, sharded weights.

    The answer is the same when a checkpointed block is recomputed, so its dropout is too.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    if type(dropout) not in (nn.Dropout, nn.Identity) or x.device.type not in ("cpu", "cuda"):
        return False
    return _is_plain_linear(lora_a) and _is_plain_linear(lora_b)


def _is_plain_linear(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or type(module.weight) not in (nn.Parameter, Tensor):
        return False
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    foreign = hasattr(module.weight, "ds_id") or hasattr(module, "_hf_hook")  # loaded when called
    return not any(hooks) and not foreign


def _forward(
    result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: Tensor | float, mask: DropMask | None
) -> tuple[Tensor, Tensor]:
    """The updated output, [tokens, out], and the rank coordinates, [..., rank]."""
    # [..., in] [in, rank] -> [..., rank]
    hidden = _dropped(x, a.dtype, mask) @ a.t()
    scaled = _flat(hidden * scale)
    # [tokens, out] + [tokens, rank] [rank, out]
    updated = torch.addmm(_flat(result.to(a.dtype)), scaled, b.t())
    return updated.to(result.dtype), hidden


def _flat(x: Tensor) -> Tensor:
    """[..., width] -> [tokens, width]; one vector is one token."""
    return x.reshape(-1, x.shape[-1])


def _dropped(x: Tensor, dtype: torch.dtype, mask: DropMask | None) -> Tensor:
    x = x.to(dtype)
    return x if mask is None else mask.apply(x)


class _GatedProduct(torch.autograd.Function):
    """`_forward` with a backward pass that draws the dropped input again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*operands: Any) -> tuple[Tensor, Tensor]:
        return _forward(*operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        result, x, a, b, scale, mask = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.shape = result.shape
        ctx.mask, ctx.constant = mask, None if isinstance(scale, Tensor) else scale
        tensors = (x, a, b, output[1])
        ctx.save_for_backward(*tensors, *((scale,) if ctx.constant is None else ()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, hidden, *rest = ctx.saved_tensors
        scale = rest[0] if rest else ctx.constant
        _, wants_x, wants_a, wants_b, wants_scale, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a second derivative: what is kept has no history
            hidden = _dropped(x, a.dtype, ctx.mask) @ a.t()
        # [tokens, out], [tokens, rank]
        of_out = grads[0].to(b.dtype)
        of_scaled = (of_out @ b).view(hidden.shape)
        of_hidden = of_scaled * scale
        of_x = of_a = of_b = of_scale = None
        if wants_b:
            of_b = (_flat(hidden * scale).t() @ of_out).t()
        if wants_scale:
            of_scale = (of_scaled * hidden).sum_to_size(scale.shape)
        if wants_a:
            dropped = _dropped(x, a.dtype, ctx.mask)
            of_a = _flat(of_hidden).t() @ _flat(dropped)
        if wants_x:
            of_x = of_hidden @ a
            of_x = (of_x if ctx.mask is None else ctx.mask.apply(of_x)).to(x.dtype)
        return grads[0].view(ctx.shape), of_x, of_a, of_b, of_scale, None
