"""The gated update of one layer, as a variant of PEFT's LoRA layers.

PEFT's layers ask `layer.lora_variant[adapter]` for the update, so one implementation serves every
back end that does. A gate's form says what happens between A and B. The experts of a mixture lie
side by side in one A, [K r, in], and one B, [out, K r]: expert k owns rows (columns) k r up to
(k+1) r, and mixing them is one multiplication of width K r (arXiv 2408.10159, Eq. 6 and 7,
rearranged).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.errors import lost_routing_error, merge_error, missing_routing_error, padded_error
from peft_ilora.gating import Gate
from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.modulation import Modulation
from peft_ilora.layers.computed import current
from peft_ilora.routing.binding import RoutingState
from peft_ilora.routing.checks import layer_rows_error


class GatedUpdate(LoraVariant):
    """`result + B modulation(A x)` for one adapter of one layer.

    Args:
        gate: The adapter's shared gate, or this layer's own.
        state: The model's bindings.
        config: The adapter's configuration.
        coordinates: Rank coordinates of the layer.
        name: The layer's name in the model, for errors.
    """

    def __init__(
        self,
        gate: Gate,
        state: RoutingState,
        config: ILoRAConfig,
        coordinates: Coordinates,
        name: str,
    ) -> None:
        self.gate = gate
        self.state = state
        self.coordinates = coordinates
        self.rank = coordinates.rank
        self.place: int | None = None
        """Which of the coefficients of a gate that makes them for all layers are this one's."""
        self.by_token = config.gate_input == "token"
        self.missing_routing = config.missing_routing
        self.name = name
        self.of_images = False
        """Whether its rows are images, as far as the model has been asked."""
        self.token_coefficients: Tensor | None = None
        """[..., coefficients] of the last forward, where tokens are routed."""
        self.merged_coefficients: Tensor | None = None
        """[coefficients] that the adapter is merged with."""
        self.merged_bias: Tensor | None = None
        """[out] that merging the adapter adds to the base layer's bias."""
        self.merged_elsewhere = False
        """Whether another layer, with the same base weight, does this one's merging."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"token_coefficients": None}  # a copy has seen no forward

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
            layer_kwargs: What else PEFT passes on; unused.

        Returns:
            Of the shape and dtype of `result`.
        """
        hidden = self.down(module, active_adapter, x)  # [batch, ..., rank]
        like = x if x.is_floating_point() else hidden
        modulation = self.modulation(module, active_adapter, x, hidden.shape[:-1], like)
        update = self.up(module, active_adapter, modulation(hidden))
        return (result + update).to(result.dtype)

    def down(self, module: Any, adapter: str, x: Tensor) -> Tensor:
        """Return the rank coordinates `A dropout(x)` of an input, [batch, ..., rank]."""
        raise NotImplementedError

    def up(self, module: Any, adapter: str, hidden: Tensor) -> Tensor:
        """Return `B hidden`, in the layout of the layer's output."""
        raise NotImplementedError

    def meet(self, module: LoraLayer, layers: Mapping[str, LoraLayer]) -> None:
        """Learn of an adapter's layers, by name, once all of them are made.

        Nothing to do here: every layer computes by itself.
        """

    # ---------------------------------------------------------------- the modulation

    def modulation(
        self,
        module: LoraLayer,
        adapter: str,
        x: Tensor,
        leading: Sequence[int],
        like: Tensor,
        factor: float = 1.0,
    ) -> Modulation:
        """Return what is done to the rank coordinates.

        Args:
            module: The LoRA layer.
            adapter: Name of the adapter.
            x: The layer's input.
            leading: Shape of the rank coordinates without their last dimension.
            like: The modulation takes its dtype and device.
            factor: What makes up for dropped elements of the input, where `down` has not.

        Raises:
            ValueError: No routing is in force, or its rows do not correspond to the input's.
        """
        scaling, form = module.scaling[adapter], self.gate.form
        if self.by_token:
            noise = self.gate.draw_noise(x.shape[:-1], x.device)
            given = self.token_coefficients = self.gate(x, noise)
            return form.modulation(given, self.coordinates, scaling, like, factor)
        rows = leading[0] if leading else 0
        layout = (rows, len(leading), like.dtype, like.device, self.of_images)
        kind = ("modulation", self.gate, self.coordinates, scaling, factor, *layout)

        def compute() -> Modulation | tuple[Modulation, ...]:
            given = self._coefficients(adapter, x, leading, like)
            found = form.modulation(given, self.coordinates, scaling, like, factor)
            of_all_layers = given.dim() == len(leading) + 2
            return found.split() if of_all_layers else found

        found = self.state.remember(kind, compute)
        return found[self.place or 0] if isinstance(found, tuple) else found

    def _coefficients(
        self, adapter: str, x: Tensor, leading: Sequence[int], like: Tensor
    ) -> Tensor:
        """[rows, 1, ..., coefficients], which broadcasts against the rank coordinates; where each
        layer has its own and they are remembered, those of all layers, [layers, rows, 1, ...].
        """
        routing = self.state.routing_of(adapter)
        if routing is None:
            if self.missing_routing == "error":
                raise missing_routing_error(adapter)
            if self.state.runs_again():
                raise lost_routing_error()
            return self.gate.unrouted(self.coordinates, like)
        given = self.state.coefficients(self.gate, adapter, self.place)
        given = routing.spread(self.gate.cut(given, self.coordinates), leading, self.of_images)
        if given is None:
            raise layer_rows_error(routing, self.name, tuple(x.shape))
        return given.view(*given.shape[:-1], *[1] * (len(leading) - 1), given.shape[-1])

    def coefficients_of(self, z: Tensor) -> Tensor:
        """Return the layer's coefficients for instances, [batch, coefficients].

        Args:
            z: [batch, routing_dim]; of a hard gate [batch], int64.
        """
        return self.gate.cut(self.gate(z, place=self.place), self.coordinates)

    # ---------------------------------------------------------------- merging

    def supports_lora_conversion(self) -> bool:
        """False: only one instance of it is a plain LoRA (`peft_ilora.export_lora`)."""
        return False

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Do nothing: `ILoRAModel` attaches the variant to a finished layer."""

    def merge_safe(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, orig_weight: Tensor
    ) -> Tensor:
        """Return the base weight with the adapter as it is for `merged_coefficients`.

        The bias is merged here: PEFT's own merge of a bias loses the scaling in some back ends.
        """
        if self.merged_elsewhere:
            return orig_weight
        delta = self._merged_delta(module, active_adapter)
        self._add_to_bias(module, 1)
        return orig_weight + delta.to(orig_weight.dtype)

    def merge_unsafe(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, orig_weight: Tensor
    ) -> None:
        """Merge as `merge_safe` does, in place."""
        if not self.merged_elsewhere:
            orig_weight.data += self._merged_delta(module, active_adapter).to(orig_weight.dtype)
            self._add_to_bias(module, 1)

    def unmerge(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, orig_weight: Tensor
    ) -> Tensor:
        """Return the base weight without the adapter."""
        if self.merged_elsewhere:
            return orig_weight.data
        delta = self._merged_delta(module, active_adapter)
        self._add_to_bias(module, -1)
        return orig_weight.data - delta.to(orig_weight.dtype)

    def _add_to_bias(self, module: LoraLayer, sign: int) -> None:
        if self.merged_bias is not None:
            add_to_bias(module.get_base_layer(), sign * self.merged_bias)

    def _merged_delta(self, module: LoraLayer, adapter: str) -> Tensor:
        if self.merged_coefficients is None:
            raise merge_error(adapter)
        return self.delta_weight(module, adapter, self.merged_coefficients)

    def delta_weight(self, module: LoraLayer, adapter: str, coefficients: Tensor) -> Tensor:
        """Return what one instance adds to the base weight, in the layout of that weight.

        Args:
            module: The LoRA layer.
            adapter: Name of the adapter.
            coefficients: [coefficients] of the instance.
        """
        with self.folded(module, adapter, coefficients):
            delta = module.get_delta_weight(adapter)  # type: ignore[operator]
        assert isinstance(delta, Tensor)
        return delta

    @contextmanager
    def folded(self, module: LoraLayer, adapter: str, coefficients: Tensor) -> Iterator[None]:
        """Let a layer's B be that of one instance's plain LoRA for the block.

        Args:
            module: The LoRA layer.
            adapter: Name of the adapter.
            coefficients: [coefficients] of the instance.
        """
        b = up_projection(module, adapter).data
        b = self.gate.form.fold(b, coefficients, self.coordinates)
        if adapter in module.lora_embedding_B:
            name, own = "lora_embedding_B", module.lora_embedding_B
            held: nn.Module = nn.ParameterDict({**own, adapter: b})
        else:
            name, own = "lora_B", module.lora_B
            held = nn.ModuleDict({**own, adapter: _Held(b)})
            current(module.lora_A[adapter])
        setattr(module, name, held)
        try:
            yield
        finally:
            setattr(module, name, own)


class GatedLinear(GatedUpdate):
    """The update of linear layers, plain or quantised: [batch, ..., in] -> [batch, ..., out]."""

    def down(self, module: Any, adapter: str, x: Tensor) -> Tensor:
        """Return `A dropout(x)`: calls the modules, so that hooks and wrappers run."""
        self.check_rank(module.lora_A[adapter])
        return module.lora_A[adapter](module.lora_dropout[adapter](x))

    def up(self, module: Any, adapter: str, hidden: Tensor) -> Tensor:
        """Return `B hidden`, [batch, ..., out]."""
        return module.lora_B[adapter](hidden)

    def check_rank(self, lora_a: nn.Module) -> None:
        """Refuse an A whose rank has been changed; a sharded or wrapped one does not tell."""
        if isinstance(lora_a, nn.Linear) and not hasattr(lora_a.weight, "ds_id"):
            found = lora_a.weight.shape[0]
            if found != self.rank:
                raise padded_error(self.name, found, self.rank)


class _Held(nn.Module):
    """Stands in for B: it holds a weight, which may be none that B could be given."""

    bias = None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def add_to_bias(base_layer: nn.Module, difference: Tensor) -> None:
    """Add to a base layer's bias, in place and in its own precision."""
    bias = base_layer.bias
    assert isinstance(bias, Tensor)
    bias.data += difference.to(bias.device, bias.dtype)


def up_projection(module: LoraLayer, adapter: str) -> Tensor:
    """Return B of a layer's adapter, [out, rank, ...]."""
    if adapter in module.lora_embedding_B:
        return current(module.lora_embedding_B, adapter)
    return current(module.lora_B[adapter])
