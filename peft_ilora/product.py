"""`W x + B (scale * A dropout(x))`: a linear layer's output with its gated update.

Where nothing else wants to see the parts, one autograd function computes it. What is kept for the
backward pass is the layer's input as it came and the rank coordinates, nothing else of the input's
or the output's size: the dropped (`peft_ilora/dropout.py`) or cast input is computed again. The
update is added inside of the product with B, in place where the base layer's output is made here
too, and its gradient inside of the product with A. Layers that read the same input
(`peft_ilora/siblings.py`) share one mask, one product with all their A, and one input gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from peft_ilora.dropout import DropMask, draw_mask


def fused_product(
    base: Tensor | nn.Module,
    x: Tensor,
    downs: Sequence[Tensor],
    b: Tensor,
    scale: Tensor | float,
    p: float = 0.0,
    given: Tensor | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The updated output of a linear layer, and the rank coordinates of others with its input.

    Args:
        base: The base layer, or its output, [..., out].
        x: The layer's input, [..., in], of any floating dtype.
        downs: A of this layer, [rank, in], and of the others; none with `given`.
        b: [out, rank]
        scale: Of the rank coordinates; broadcasts to [..., rank]. Kept elements are not rescaled.
        p: Probability that dropout drops an element of `x`.
        given: The layer's rank coordinates, [..., rank], where they are known.

    Returns:
        [..., out] in the dtype of the base layer's output; [..., rank] for each of the others, to
        be passed as `given`.
    """
    mask = draw_mask(p) if p and given is None else None
    output, weight, bias = _taken_apart(base, x)
    updated, *others = _GatedProduct.apply(output, x, weight, bias, given, b, scale, mask, *downs)
    width = b.shape[0]
    # A view made in here, past the function, may be written to: some models add to it in place.
    return updated.view(*x.shape[:-1], width), others


def inferred_product(
    base: Tensor | nn.Module, x: Tensor, a: Tensor, b: Tensor, scale: Tensor | float
) -> Tensor:
    """The updated output, without gradients or dropout. Short, as a decode step of a small model
    is as fast as its Python.

    Args:
        base: The base layer, or its output, [..., out].
        x: The layer's input, [..., in].
        a: [rank, in]
        b: [out, rank]
        scale: Of the rank coordinates; broadcasts to [..., rank].
    """
    output, weight, bias = _taken_apart(base, x)
    hidden = F.linear(x if x.dtype == a.dtype else x.to(a.dtype), a) * scale
    if weight is None or x.dtype != a.dtype:
        return _updated(output, x, weight, bias, hidden, b).view(*x.shape[:-1], b.shape[0])
    output = F.linear(x, weight, bias)
    _flat(output).addmm_(_flat(hidden), b.t())
    return output


def composed_product(
    result: Tensor,
    x: Tensor,
    lora_a: nn.Module,
    lora_b: nn.Module,
    dropout: nn.Module,
    scale: Tensor | float,
    cast: bool = True,
) -> Tensor:
    """The same of modules that are called, for whoever wants to see them.

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
    x = x.to(adapter_weight(lora_a, x).dtype) if cast else x
    hidden = lora_a(dropout(x))
    return (result + lora_b(hidden * scale)).to(result.dtype)


def adapter_weight(lora_a: nn.Module, otherwise: Tensor) -> Tensor:
    """The weight of A, for its dtype and device, or another tensor where a wrapper (FSDP's) hides
    it. Of an offloaded weight, which accelerate loads when A is called, only the dtype holds.
    """
    weight = lora_a._parameters["weight"] if isinstance(lora_a, nn.Linear) else None
    if weight is None:
        return otherwise
    return otherwise.to(weight.dtype) if weight.is_meta else weight


def weight_of(linear: nn.Module) -> Tensor:
    """The weight of a plain linear layer, past `nn.Module`'s slow attributes."""
    weight = linear._parameters["weight"]
    assert weight is not None
    return weight


def is_plain(x: Tensor, lora_a: nn.Module, lora_b: nn.Module, dropout: nn.Module) -> bool:
    """Whether nothing else wants to see the parts: compilers, autocast, hooks, sharded weights;
    vmap, selective checkpointing, forward derivatives and traces see through plain calls only.

    The answer is the same when a checkpointed block is recomputed, so its dropout is too.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
        or _has_any_global_hook()
        or not (x.is_cpu or x.is_cuda)
    ):
        return False
    if type(dropout) is not nn.Identity and (
        type(dropout) is not nn.Dropout or dropout._forward_hooks or dropout._forward_pre_hooks
    ):
        return False
    return is_plain_linear(lora_a) and is_plain_linear(lora_b)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling a module is multiplying with its weight, and nothing else."""
    own = module.__dict__
    if type(module) is not nn.Linear or "_hf_hook" in own or "forward" in own:  # accelerate's loads
        return False
    if own["_forward_hooks"] or own["_forward_pre_hooks"]:
        return False
    if own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    weight = own["_parameters"].get("weight")
    return type(weight) in (nn.Parameter, Tensor) and "ds_id" not in weight.__dict__  # DeepSpeed's


def _taken_apart(
    base: Tensor | nn.Module, x: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """A base layer's output, or the weight and bias to compute it with, where these are frozen."""
    if isinstance(base, Tensor):
        return base, None, None
    if is_plain_linear(base):
        weight, bias = weight_of(base), base._parameters["bias"]
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if weight.dtype == x.dtype and not trained:
            return None, weight, bias
    return base(x), None, None


def _seen(x: Tensor, a: Tensor, mask: DropMask | None) -> tuple[Tensor, Tensor | None]:
    """The input as A sees it, and which of its elements are kept, as numbers."""
    x = x.to(a.dtype)
    kept = None if mask is None else mask.kept(x)
    return (x if kept is None else x * kept), kept


def _rank_coordinates(seen: Tensor, downs: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """[..., in] -> [..., rank] of the first A, and of each other one."""
    wide = F.linear(seen, _stacked(downs))
    if len(downs) == 1:
        return wide, ()
    first, *others = wide.split([a.shape[0] for a in downs], dim=-1)
    return first, others


def _stacked(downs: Sequence[Tensor]) -> Tensor:
    return downs[0] if len(downs) == 1 else torch.cat(tuple(downs))


def _updated(
    output: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scaled: Tensor,
    b: Tensor,
) -> Tensor:
    """The base layer's output, or its input and weight, and [..., rank] -> [tokens, out]."""
    scaled, up = _flat(scaled), b.t()
    if output is None:
        assert weight is not None
        output = F.linear(_flat(x), weight, bias)
        if output.dtype == b.dtype:
            return output.addmm_(scaled, up)
    else:
        output = _flat(output)
    if torch.promote_types(output.dtype, b.dtype) == b.dtype:
        return torch.addmm(output.to(b.dtype), scaled, up).to(output.dtype)
    return (output + scaled @ up).to(output.dtype)  # an adapter of lower precision than the base


def _flat(x: Tensor) -> Tensor:
    """[..., width] -> [tokens, width]; one vector is one token."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


class _GatedProduct(torch.autograd.Function):
    """The updated output, [tokens, out], and the others' rank coordinates."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        output: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        given: Tensor | None,
        b: Tensor,
        scale: Tensor | float,
        mask: DropMask | None,
        *downs: Tensor,
    ) -> tuple[Tensor, ...]:
        hidden, others = given, ()
        if hidden is None:
            hidden, others = _rank_coordinates(_seen(x, downs[0], mask)[0], downs)
        ctx.mask, ctx.constant = mask, None if isinstance(scale, Tensor) else scale
        ctx.shapes = None if output is None else output.shape, x.shape
        ctx.set_materialize_grads(False)
        saved_scale = scale if ctx.constant is None else None
        ctx.save_for_backward(x if downs else None, weight, hidden, b, saved_scale, *downs)
        return _updated(output, x, weight, bias, hidden * scale, b), *others

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, of_updated: Tensor | None, *of_others: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, hidden, b, scale, *downs = ctx.saved_tensors
        scale = ctx.constant if scale is None else scale
        wants_output, wants_x, _, _, wants_given, wants_b, wants_scale, _, *_ = ctx.needs_input_grad
        seen, kept = _seen(x, downs[0], ctx.mask) if downs else (None, None)
        if seen is not None and torch.is_grad_enabled():
            hidden, _ = _rank_coordinates(seen, downs)  # what is saved has no history
        of_hidden = of_b = of_scale = of_x = None
        if of_updated is not None:
            of_out = of_updated.to(b.dtype)  # [tokens, out]
            of_scaled = (of_out @ b).view(hidden.shape)
            of_hidden = of_scaled * scale
            of_b = (_flat(hidden * scale).t() @ of_out).t() if wants_b else None
            of_scale = (of_scaled * hidden).sum_to_size(scale.shape) if wants_scale else None
            of_x = of_updated @ weight if wants_x and weight is not None else None  # [tokens, in]
        of_downs: Sequence[Tensor | None] = ()
        if seen is not None:
            of_hiddens = (of_hidden, *of_others)
            of_x, of_downs = _of_inputs(of_x, downs, of_hiddens, seen, kept, x.dtype, wants_x)
        output_shape, x_shape = ctx.shapes
        return (
            of_updated.view(output_shape) if wants_output and of_updated is not None else None,
            None if of_x is None else of_x.view(x_shape),
            None,
            None,
            of_hidden if wants_given else None,
            of_b,
            of_scale,
            None,
            *of_downs,
        )


def _of_inputs(
    of_base: Tensor | None,
    downs: Sequence[Tensor],
    of_hiddens: Sequence[Tensor | None],
    seen: Tensor,
    kept: Tensor | None,
    dtype: torch.dtype,
    wants_x: bool,
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """Gradients of the input, [tokens, in], and of each A; of a layer that has not run, None.

    Args:
        of_base: The input's, through the base layer; written to.
        downs: All A.
        of_hiddens: Of the rank coordinates.
        seen: The input as A sees it.
        kept: Which of its elements are kept.
        dtype: Of the input.
        wants_x: Whether the input has a gradient.
    """
    ran = [index for index, of in enumerate(of_hiddens) if of is not None]
    of_downs: list[Tensor | None] = [None] * len(downs)
    if not ran:
        return of_base, of_downs
    given = [of for of in of_hiddens if of is not None]
    of_wide = _flat(given[0] if len(given) == 1 else torch.cat(given, dim=-1))
    of_stacked = of_wide.t() @ _flat(seen)
    for index, part in zip(ran, of_stacked.split([of.shape[-1] for of in given]), strict=True):
        of_downs[index] = part.clone() if len(ran) > 1 else part  # each in memory of its own
    if not wants_x:
        return None, of_downs
    stacked = _stacked([downs[index] for index in ran])
    if kept is None and of_base is not None and of_base.dtype == stacked.dtype:
        return of_base.addmm_(of_wide, stacked), of_downs
    of_a = of_wide @ stacked
    of_a = (of_a if kept is None else of_a.mul_(_flat(kept))).to(dtype)
    return of_a if of_base is None else of_base.add_(of_a), of_downs
