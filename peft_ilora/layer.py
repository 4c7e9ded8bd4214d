"""The gated update of one layer, as a variant of PEFT's LoRA layers.

PEFT's layers (plain, Conv1D, bitsandbytes, GPTQ, HQQ, torchao) ask `layer.lora_variant[adapter]`
for the update, so one implementation serves every back end that does. The experts lie side by side
in one `lora_A` [K r, in] and one `lora_B` [out, K r]: expert k owns rows (columns) k r .. (k+1) r,
and mixing is one multiplication of width K r (arXiv 2408.10159, Eq. 6 and 7, rearranged).
"""

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.gate import Gate
from peft_ilora.routing import RoutingState

ROUTED_LAYERS = frozenset(
    {"Linear", "Linear8bitLt", "Linear4bit", "GPTQLoraLinear", "HqqLoraLinear", "TorchaoLoraLinear"}
)
"""PEFT's LoRA layers that consult `lora_variant`; any other would silently run ungated."""


class GatedUpdate(LoraVariant):
    """`result + B (scale(z) * (A dropout(x)))` for one adapter of one layer.

    Args:
        gate: The adapter's shared gate, or this layer's own.
        state: The model's routing.
        config: The adapter's configuration.
        name: The layer's name in the model, for errors.
    """

    def __init__(self, gate: Gate, state: RoutingState, config: ILoRAConfig, name: str) -> None:
        self.gate = gate
        self.state = state
        self.num_experts = config.num_experts
        self.missing_routing = config.missing_routing
        self.name = name

    def forward(  # type: ignore[override]  # PEFT declares it static; it calls it on the instance
        self,
        module: LoraLayer,
        active_adapter: str,
        x: Tensor,
        result: Tensor,
        **layer_kwargs: Any,
    ) -> Tensor:
        """Add the update to the base layer's output.

        Args:
            module: The LoRA layer.
            active_adapter: Name of the adapter.
            x: The layer's input, [batch, ..., in], in the adapter's dtype.
            result: The base layer's output, [batch, ..., out].
            layer_kwargs: PEFT passes on what the base layer took; unused.

        Returns:
            [batch, ..., out]
        """
        lora_b = module.lora_B[active_adapter]
        assert isinstance(lora_b, nn.Linear)
        hidden = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        hidden = hidden * self._rank_scale(module, active_adapter, x, hidden.dtype)
        return add_product(result, hidden, lora_b)

    def _rank_scale(
        self, module: LoraLayer, adapter: str, x: Tensor, dtype: torch.dtype
    ) -> Tensor | float:
        scaling = module.scaling[adapter]
        routing = self.state.current
        if routing is not None:
            rank = module.r[adapter] // self.num_experts
            return routing.rank_scale(self.gate, rank, scaling, x, dtype, self.name)
        if self.missing_routing == "error":
            raise missing_routing_error(adapter)
        return scaling / self.num_experts

    def supports_lora_conversion(self) -> bool:
        """False: only one instance of it is a plain LoRA (`peft_ilora.export_lora`)."""
        return False

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Nothing to do: `ILoRAModel` attaches the variant to a finished layer."""

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Refuse: see `merge_error`."""
        raise merge_error(active_adapter)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Refuse: see `merge_error`."""
        raise merge_error(active_adapter)


def add_product(result: Tensor, hidden: Tensor, lora_b: nn.Linear) -> Tensor:
    """`result + lora_b(hidden)`, in one pass over the output where nothing hooks into `lora_b`.

    Args:
        result: [..., out]
        hidden: [..., rank]
        lora_b: Linear(rank, out) without a bias.
    """
    weight = lora_b.weight
    hooked = lora_b._forward_hooks or lora_b._forward_pre_hooks or hasattr(weight, "ds_id")
    if hooked or not result.dtype == hidden.dtype == weight.dtype:
        return result + lora_b(hidden)
    # [tokens, out] + [tokens, rank] [rank, out]
    flat = torch.addmm(result.flatten(0, -2), hidden.flatten(0, -2), weight.t())
    return flat.view(result.shape)


def missing_routing_error(adapter: str) -> ValueError:
    """The error of a forward without routing."""
    return ValueError(
        f"routing_embeds is missing: adapter {adapter!r} mixes its experts by instance. Pass "
        "model(..., routing_embeds=z) or model.generate(..., routing_embeds=z), or run inside "
        "`with model.routing(z):`, with z of shape [batch, routing_dim]; "
        "ILoRAConfig(missing_routing='uniform') mixes evenly instead. (transformers' Trainer drops "
        "the column unless TrainingArguments(remove_unused_columns=False); a block that calls "
        "torch.utils.checkpoint by itself recomputes without routing: use the model's "
        "gradient_checkpointing_enable())"
    )


def merge_error(adapter: str) -> ValueError:
    """The error of a merge that names no instance."""
    return ValueError(
        f"adapter {adapter!r} has a weight of its own for each instance, so it cannot be merged as "
        "it is: call model.merge_and_unload(routing_embeds=z) with one instance's z of shape "
        "[1, routing_dim], or peft_ilora.export_lora(model, z, folder) for a plain LoRA"
    )


def routed_layer(layer: nn.Module, name: str) -> LoraLayer:
    """Return the LoRA layer that PEFT made, if it lets a variant compute the update.

    Raises:
        TypeError: It would run the experts without their gate.
    """
    if not isinstance(layer, LoraLayer) or type(layer).__name__ not in ROUTED_LAYERS:
        raise TypeError(
            f"target module {name!r} became a {type(layer).__name__}, a back end that would bypass "
            f"the gate; supported are {', '.join(sorted(ROUTED_LAYERS))}"
        )
    return layer


def check_target(name: str, model: nn.Module) -> None:
    """Refuse a target that the gated update does not cover, before anything is replaced.

    Args:
        name: Of the targeted module.
        model: The base model.

    Raises:
        TypeError: Not a linear layer.
        ValueError: A linear layer whose input is no batch of instances, or whose weight is read
            past the layer.
    """
    module = model.get_submodule(name)
    if isinstance(module, (nn.Embedding, nn.MultiheadAttention, nn.modules.conv._ConvNd)):
        raise TypeError(
            f"target module {name!r} is a {type(module).__name__}; iLoRA adapts linear layers "
            "(torch.nn.Linear, transformers Conv1D and their quantised forms): take it out of "
            "target_modules"
        )
    parts = name.split(".")
    if "experts" in parts[:-1]:
        raise ValueError(
            f"target module {name!r} lies in a mixture of experts: it sees gathered tokens, not a "
            "batch of instances. Add exclude_modules=r'.*\\.experts\\..*' or target attention only"
        )
    parent = model.get_submodule(".".join(parts[:-1]))
    if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
        raise ValueError(
            f"target module {name!r} lies in a torch {type(parent).__name__}, whose fast path "
            "reads weights past the layer, so the adapter would do nothing: take it out of "
            "target_modules"
        )
