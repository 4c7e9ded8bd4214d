"""The gated update of one layer, as a variant of PEFT's LoRA layers.

PEFT's layers ask `layer.lora_variant[adapter]` for the update, so one implementation serves every
back end that does. The experts lie side by side in one A [K r, in] and one B [out, K r]: expert k
owns rows (columns) k r .. (k+1) r, and mixing is one multiplication of width K r
(arXiv 2408.10159, Eq. 6 and 7, rearranged).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.coordinates import Coordinates
from peft_ilora.errors import merge_error, missing_routing_error
from peft_ilora.gate import Gate, HardGate
from peft_ilora.routing import RoutingState, Rows


class GatedUpdate(LoraVariant):
    """`result + B (scale(z) * (A dropout(x)))` for one adapter of one layer.

    Args:
        gate: The adapter's shared gate, or this layer's own.
        state: The model's routing.
        config: The adapter's configuration.
        coordinates: Of the layer.
        name: The layer's name in the model, for errors.
    """

    def __init__(
        self,
        gate: Gate | HardGate,
        state: RoutingState,
        config: ILoRAConfig,
        coordinates: Coordinates,
        name: str,
    ) -> None:
        self.gate = gate
        self.state = state
        self.coordinates = coordinates
        self.rank = sum(coordinates.ranks)
        self.by_token = config.gate_input == "token"
        self.missing_routing = config.missing_routing
        self.name = name
        self.token_weights: Tensor | None = None
        """[..., num_experts] of the last forward, where tokens are routed."""
        self.merged_weights: Tensor | None = None
        """[num_experts] that the adapter is merged with."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"token_weights": None}  # a copy has seen no forward

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
            x: The layer's input, in the adapter's dtype; the batch is its first dimension.
            result: The base layer's output.
            layer_kwargs: PEFT passes on what the base layer took; unused.
        """
        raise NotImplementedError

    def rank_scale(
        self,
        module: LoraLayer,
        adapter: str,
        x: Tensor,
        rows: Rows,
        like: Tensor,
        factor: float = 1.0,
    ) -> Tensor | float:
        """What the rank coordinates are multiplied by.

        Args:
            module: The LoRA layer.
            adapter: Name of the adapter.
            x: The layer's input.
            rows: Of `x`.
            like: The result takes its dtype and device.
            factor: Multiplied in.

        Returns:
            [rows, 1, ..., sum of ranks], where tokens are routed [..., sum of ranks], or one
            number.

        Raises:
            ValueError: No routing is in force, or its rows do not correspond to the input's.
        """
        scaling = module.scaling[adapter] * factor
        if self.by_token:
            return self._token_scale(x, scaling, like)
        frame = self.state.stack[-1]
        routing, names = frame.routing, frame.adapter_names
        if routing is None:
            if self.missing_routing == "error":
                raise missing_routing_error(adapter)
            return scaling / self.coordinates.num_experts
        if names is not None:  # PEFT passes this adapter's rows only
            chosen = [row for row, name in enumerate(names) if name == adapter]
            routing = routing.of_rows(chosen, adapter)
        scale = routing.rank_scale(self.gate, adapter, self.coordinates, scaling, rows, like)
        if scale is None:
            raise ValueError(
                f"routing_embeds has {routing.batch} rows but {self.name} got an input of shape "
                f"{tuple(x.shape)}, which is neither that batch nor a flattening of it: give one "
                "routing row for each input row, or leave this module out by exclude_modules"
            )
        return scale

    def _token_scale(self, x: Tensor, scaling: float, like: Tensor) -> Tensor:
        assert isinstance(self.gate, Gate)
        noise = None
        if self.gate.training and self.gate.noise_std > 0:
            shape = (*x.shape[:-1], self.coordinates.num_experts)
            noise = torch.randn(shape, device=x.device)
        weights = self.gate(x, noise)
        self.token_weights = weights
        return self.coordinates.spread((weights * scaling).to(like.device, like.dtype))

    # ---------------------------------------------------------------- merging

    def supports_lora_conversion(self) -> bool:
        """False: only one instance of it is a plain LoRA (`peft_ilora.export_lora`)."""
        return False

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Nothing to do: `ILoRAModel` attaches the variant to a finished layer."""

    def merge_safe(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, orig_weight: Tensor
    ) -> Tensor:
        """The base weight with the adapter merged as it is for `merged_weights`."""
        delta = self._delta_weight(module, active_adapter)
        return orig_weight + delta.to(orig_weight.dtype)

    def merge_unsafe(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, orig_weight: Tensor
    ) -> None:
        """As `merge_safe`, in place."""
        orig_weight.data += self._delta_weight(module, active_adapter).to(orig_weight.dtype)

    def unmerge(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, orig_weight: Tensor
    ) -> Tensor:
        """The base weight without the adapter."""
        return orig_weight.data - self._delta_weight(module, active_adapter).to(orig_weight.dtype)

    def _delta_weight(self, module: LoraLayer, adapter: str) -> Tensor:
        if self.merged_weights is None:
            raise merge_error(adapter)
        return self.delta_weight(module, adapter, self.merged_weights)

    def delta_weight(self, module: LoraLayer, adapter: str, weights: Tensor) -> Tensor:
        """`scaling * sum_k w_k B_k A_k`, in the layout of the base weight.

        Args:
            module: The LoRA layer.
            adapter: Name of the adapter.
            weights: [num_experts]
        """
        with self.folded(module, adapter, weights):
            delta = module.get_delta_weight(adapter)  # type: ignore[operator]
        assert isinstance(delta, Tensor)
        return delta

    @contextmanager
    def folded(self, module: LoraLayer, adapter: str, weights: Tensor) -> Iterator[None]:
        """Let a layer's B hold these expert weights for the block.

        Args:
            module: The LoRA layer.
            adapter: Name of the adapter.
            weights: [num_experts]
        """
        b = up_projection(module, adapter)
        before = b.data
        b.data = self.coordinates.fold(before, weights)
        try:
            yield
        finally:
            b.data = before


class GatedConv(GatedUpdate):
    """The update of convolutions: [batch, in, ...] -> [batch, out, ...]."""

    def forward(  # noqa: D102  # type: ignore[override]
        self,
        module: LoraLayer,
        active_adapter: str,
        x: Tensor,
        result: Tensor,
        **layer_kwargs: Any,
    ) -> Tensor:
        # [batch, sum of ranks, ...]
        hidden = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        rows = (x.shape[0], False, 0)
        scale = self.rank_scale(module, active_adapter, x, rows, hidden)
        if isinstance(scale, Tensor):
            scale = scale.view(*scale.shape, *[1] * (hidden.dim() - 2))
        return result + module.lora_B[active_adapter](hidden * scale)


class GatedEmbedding(GatedUpdate):
    """The update of embeddings: ids [batch, ...] -> [batch, ..., out]."""

    def forward(  # noqa: D102  # type: ignore[override]
        self,
        module: Any,
        active_adapter: str,
        x: Tensor,
        result: Tensor,
        **layer_kwargs: Any,
    ) -> Tensor:
        # [batch, ..., sum of ranks]
        hidden = module._embed(x, module.lora_embedding_A[active_adapter].T)
        rows = (x.shape[0], x.dim() == 1, hidden.dim() - 2)
        scale = self.rank_scale(module, active_adapter, x, rows, hidden)
        update = (hidden * scale) @ module.lora_embedding_B[active_adapter].T
        embed_scale = module._get_embed_scale()  # Gemma's embeddings multiply their output
        return result + (update if embed_scale is None else update * embed_scale.to(update.dtype))


def up_projection(module: LoraLayer, adapter: str) -> nn.Parameter:
    """B of a layer's adapter, [out, sum of ranks, ...]."""
    if adapter in module.lora_embedding_B:
        return module.lora_embedding_B[adapter]
    weight = module.lora_B[adapter].weight
    assert isinstance(weight, nn.Parameter)
    return weight
