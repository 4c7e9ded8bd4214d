"""Linear layers whose output and update are computed in one function."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from peft_ilora.fast.dropout import probability, rescale
from peft_ilora.fast.gradients import GRADIENTS
from peft_ilora.fast.probes import is_plain, is_plain_linear, known_dtype, parts_of, weight_of
from peft_ilora.fast.product import fused_product, inferred_product
from peft_ilora.fast.siblings import followers, offer, shared_memory, take
from peft_ilora.gating.modulation import Modulation
from peft_ilora.layers.update import GatedLinear


class FusedLinear(GatedLinear):
    """The update of linear layers, fused where nothing else wants to see its parts."""

    followers: Sequence[LoraLayer] = ()
    """Layers that are expected to get the same input after this one."""

    def meet(self, module: LoraLayer, layers: Mapping[str, LoraLayer]) -> None:
        """Find the layers that read the same input, and take inputs as they come."""
        self.followers = [layers[name] for name in followers(self.name, layers)]
        cast = partial(_cast_input_dtype, module)  # the update casts itself
        setattr(module, "_cast_input_dtype", cast)  # noqa: B010

    def forward(  # type: ignore[override]  # PEFT declares it static; it calls it on the instance
        self,
        module: LoraLayer,
        active_adapter: str,
        x: Tensor,
        result: Tensor,
        **layer_kwargs: Any,
    ) -> Tensor:
        """Add the update to the base layer's output; see `GatedUpdate.forward`."""
        return self.output(module, active_adapter, x, result)

    def output(self, module: Any, adapter: str, x: Tensor, base: Tensor | nn.Module) -> Tensor:
        """Return the layer's output with the update.

        Args:
            module: The LoRA layer.
            adapter: Name of the adapter.
            x: The layer's input, [batch, ..., in], in any floating dtype.
            base: The base layer, or its output, [batch, ..., out].
        """
        lora_a, lora_b, dropout = parts_of(module, adapter)
        if not (module.cast_input_dtype_enabled and is_plain(x, lora_a, lora_b, dropout)):
            return self._called(module, adapter, x, base)
        a, b = weight_of(lora_a), weight_of(lora_b)
        if a.shape[0] != self.rank:
            self.check_rank(lora_a)
        p = 0.0 if type(dropout) is nn.Identity else probability(dropout)
        factor = rescale(p) if p else 1.0
        modulation = self.modulation(module, adapter, x, x.shape[:-1], a, factor)
        if type(modulation) not in GRADIENTS:
            return self._called(module, adapter, x, base)
        if p == 0 and not torch.is_grad_enabled():
            return inferred_product(base, x, a, b, modulation)
        return self._trained(module, adapter, x, base, modulation, p)

    def _called(self, module: Any, adapter: str, x: Tensor, base: Tensor | nn.Module) -> Tensor:
        """Unfused version: calls the modules, so that hooks and wrappers run."""
        result = base if isinstance(base, Tensor) else base(x)
        dtype = known_dtype(module.lora_A[adapter])
        if module.cast_input_dtype_enabled and dtype is not None:
            x = x.to(dtype)
        return super().forward(module, adapter, x, result)

    def _trained(
        self,
        module: LoraLayer,
        adapter: str,
        x: Tensor,
        base: Tensor | nn.Module,
        modulation: Modulation,
        p: float,
    ) -> Tensor:
        """Compute `output` with a dropout of probability p, sharing what siblings can share."""
        a, b = weight_of(module.lora_A[adapter]), weight_of(module.lora_B[adapter])
        memory = shared_memory(self.state)
        given = None if memory is None else take(memory, module, adapter, x)
        if given is not None:
            return fused_product(base, x, (), b, modulation, given=given)[0]
        later = () if memory is None else self.followers
        others = [layer for layer in later if _shares(layer, adapter, x, a, p)]
        downs = [a, *(weight_of(other.lora_A[adapter]) for other in others)]
        output, hidden = fused_product(base, x, downs, b, modulation, p)
        for other, coordinates in zip(others, hidden, strict=True):
            assert memory is not None
            offer(memory, other, adapter, x, coordinates)
        return output


class Linear(lora.Linear):
    """PEFT's layer of the same name, with a fast path where one fused adapter is active.

    PEFT's own `forward` calls the base layer first and shows the update its output. Here the update
    sees the base layer, so that a frozen weight is multiplied, updated and differentiated in one
    function. Everything else is PEFT's.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[batch, ..., in] -> [batch, ..., out]"""
        names = self._active_adapter
        if len(names) == 1 and not (args or kwargs or self._disable_adapters):
            update = self.lora_variant.get(names[0])
            if type(update) is FusedLinear and not self.merged_adapters:
                return update.output(self, names[0], x, self.base_layer)
        return super().forward(x, *args, **kwargs)


def _shares(layer: LoraLayer, adapter: str, x: Tensor, like: Tensor, p: float) -> bool:
    """Whether a layer's rank coordinates may be computed with those of another, whose A is `like`
    and whose dropout has probability `p`.
    """
    if x.is_inference():  # which would not tell whether it is written to
        return False
    if adapter not in layer.lora_A or not is_plain_linear(layer.lora_A[adapter]):
        return False
    a = weight_of(layer.lora_A[adapter])
    same = a.dim() == 2 and a.shape[1] == x.shape[-1] and a.dtype == like.dtype
    return same and a.device == like.device and probability(layer.lora_dropout[adapter]) == p


def _cast_input_dtype(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Stands in for a layer's method, whose copy of the input would be kept for the backward pass.

    `cast_input_dtype_enabled` keeps its meaning, and a plain update of the same layer, of an
    adapter that was made without the fused ones, still gets its input cast.
    """
    if all(isinstance(update, FusedLinear) for update in layer.lora_variant.values()):
        return x
    return type(layer)._cast_input_dtype(layer, x, dtype)
