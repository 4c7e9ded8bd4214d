"""Linear layers: the gated update, and a layer that computes its output and the update in one."""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from peft_ilora.dropout import probability, rescale
from peft_ilora.errors import padded_error
from peft_ilora.product import (
    adapter_weight,
    composed_product,
    fused_product,
    inferred_product,
    is_plain,
    is_plain_linear,
    weight_of,
)
from peft_ilora.routing import Rows
from peft_ilora.siblings import offer, take
from peft_ilora.update import GatedUpdate


class GatedLinear(GatedUpdate):
    """The update of linear layers, plain or quantised: [batch, ..., in] -> [batch, ..., out]."""

    followers: Sequence[LoraLayer] = ()
    """Layers that are expected to get the same input after this one."""

    def forward(  # noqa: D102  # type: ignore[override]
        self,
        module: LoraLayer,
        active_adapter: str,
        x: Tensor,
        result: Tensor,
        **layer_kwargs: Any,
    ) -> Tensor:
        return self.updated(module, active_adapter, x, result)

    def updated(self, module: Any, adapter: str, x: Tensor, base: Tensor | nn.Module) -> Tensor:
        """The layer's output with the update.

        Args:
            module: The LoRA layer.
            adapter: Name of the adapter.
            x: The layer's input, [batch, ..., in].
            base: The base layer, or its output, [batch, ..., out].
        """
        rows = (x.shape[0], x.dim() == 2, x.dim() - 2)
        parts = module._modules  # past nn.Module's slow attributes
        lora_a, lora_b = parts["lora_A"]._modules[adapter], parts["lora_B"]._modules[adapter]
        dropout = parts["lora_dropout"]._modules[adapter]
        cast = module.cast_input_dtype_enabled
        if not (cast and is_plain(x, lora_a, lora_b, dropout)):
            result = base if isinstance(base, Tensor) else base(x)
            like = adapter_weight(lora_a, x)
            self._check_rank(lora_a)
            scale = self.rank_scale(module, adapter, x, rows, like)
            return composed_product(result, x, lora_a, lora_b, dropout, scale, cast)
        a, b = lora_a._parameters["weight"], lora_b._parameters["weight"]
        if a.shape[0] != self.rank:
            self._check_rank(lora_a)
        p = 0.0 if type(dropout) is nn.Identity else probability(dropout)
        scale = self._remembered_scale(module, adapter, x, rows, a, rescale(p) if p else 1.0)
        if p == 0 and not torch.is_grad_enabled():
            return inferred_product(base, x, a, b, scale)
        return self._trained(module, adapter, x, base, scale, p)

    def _remembered_scale(
        self, module: LoraLayer, adapter: str, x: Tensor, rows: Rows, like: Tensor, factor: float
    ) -> Tensor | float:
        """`rank_scale`, computed once for all layers of a kind."""
        routing = self.state.stack[-1].routing
        if routing is None or routing.memo is None or self.by_token:
            return self.rank_scale(module, adapter, x, rows, like, factor)
        memo, scaling = routing.memo, module.scaling[adapter] * factor
        kind = (self.gate, self.coordinates, scaling, rows, like.dtype, like.device)
        key = (kind, torch.is_grad_enabled())
        scale = memo.get(key)
        if scale is None:
            scale = self.rank_scale(module, adapter, x, rows, like, factor)
            assert isinstance(scale, Tensor)
            memo[key] = scale
        return scale

    def _trained(
        self,
        module: LoraLayer,
        adapter: str,
        x: Tensor,
        base: Tensor | nn.Module,
        scale: Tensor | float,
        p: float,
    ) -> Tensor:
        """`updated` with the rank coordinates shared; p is the probability of dropout."""
        a, b = weight_of(module.lora_A[adapter]), weight_of(module.lora_B[adapter])
        offers = self.state.offers
        given = None if offers is None else take(offers, module, adapter, x)
        if given is not None:
            return fused_product(base, x, (), b, scale, given=given)[0]
        later = () if offers is None else self.followers
        others = [layer for layer in later if _shares(layer, adapter, x, a, p)]
        downs = [a, *(weight_of(other.lora_A[adapter]) for other in others)]
        output, hidden = fused_product(base, x, downs, b, scale, p)
        for other, coordinates in zip(others, hidden, strict=True):
            assert offers is not None
            offer(offers, other, adapter, x, coordinates)
        return output

    def _check_rank(self, lora_a: nn.Module) -> None:
        """Refuse an A whose rank has been changed; a sharded or wrapped one does not tell."""
        if isinstance(lora_a, nn.Linear) and not hasattr(lora_a.weight, "ds_id"):
            found = lora_a.weight.shape[0]
            if found != self.rank:
                raise padded_error(self.name, found, self.rank)


class Linear(lora.Linear):
    """PEFT's layer of the same name, with a short road where one gated adapter is active.

    PEFT's own `forward` calls the base layer first and shows the update its output. Here the update
    sees the base layer, so that a frozen weight is multiplied, updated and differentiated in one
    function. Everything else is PEFT's.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[batch, ..., in] -> [batch, ..., out]"""
        names = self._active_adapter
        if len(names) == 1 and not (args or kwargs or self._disable_adapters):
            update = self.lora_variant.get(names[0])
            if type(update) is GatedLinear and not self.merged_adapters:
                return update.updated(self, names[0], x, self.base_layer)
        return super().forward(x, *args, **kwargs)


def _shares(layer: LoraLayer, adapter: str, x: Tensor, like: Tensor, p: float) -> bool:
    """Whether a layer's rank coordinates may be computed with those of another, whose A is `like`
    and whose dropout `p`.
    """
    if x.is_inference():  # which would not tell whether it is written to
        return False
    if adapter not in layer.lora_A or not is_plain_linear(layer.lora_A[adapter]):
        return False
    a = weight_of(layer.lora_A[adapter])
    same = a.dim() == 2 and a.shape[1] == x.shape[-1] and a.dtype == like.dtype
    return same and a.device == like.device and probability(layer.lora_dropout[adapter]) == p


def uncast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Stands in for a layer's `_cast_input_dtype`, whose copy would be kept for the backward pass;
    `cast_input_dtype_enabled` keeps its meaning.
    """
    return x
