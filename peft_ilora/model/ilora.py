"""ILoRAModel: injects gated layers and gives the routing its interface."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _check_lora_target_modules_mamba,
    _maybe_include_all_linear_layers,
)
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating import Gate, make_gate
from peft_ilora.gating.coordinates import Coordinates, coordinates
from peft_ilora.instance.merging import Merging
from peft_ilora.layers.adapters import Adapters
from peft_ilora.layers.kinds import UPDATES, own_layer, routed_layer
from peft_ilora.layers.targets import check_in_memory, check_target, warn_of_unknown_names
from peft_ilora.layers.tying import tie
from peft_ilora.layers.update import up_projection
from peft_ilora.model.gates import GateLifecycle
from peft_ilora.model.inspection import Inspection
from peft_ilora.model.mixing import MixedBatches
from peft_ilora.rollback import Snapshot
from peft_ilora.routing.binding import Routing, RoutingState
from peft_ilora.routing.checkpointing import bind_checkpoints
from peft_ilora.routing.checks import check_has_values, checked_embeds
from peft_ilora.routing.forward import RoutingHooks, is_routed
from peft_ilora.routing.prompt import check_prompt_width, prompt_embeds
from peft_ilora.saving import GATES


class ILoRAModel(Inspection, MixedBatches, Merging, GateLifecycle):
    """LoRA layers whose rank coordinates a gate scales per instance.

    Usually made by `get_peft_model(model, ILoRAConfig(...))`, whose PeftModel forwards `routing`,
    `gate_weights` and `merge_and_unload` to it.

    Args:
        model: The model to adapt.
        peft_config: The configuration, or one for each adapter name. `init_from` is read by
            PeftModel, which has the whole of an adapter.
        adapter_name: The adapter's name.
        low_cpu_mem_usage: Create the adapter on the meta device.
        state_dict: Decides by its keys which layers are adapted.

    Raises:
        TypeError: A targeted module cannot be routed, or its back end would bypass the gate.
        ValueError: A targeted module does not see a batch of instances; `model` is wrapped already.
    """

    # The shared gate lives here, not in a layer: PEFT then refuses bare injection with a message.
    uses_shared_state = True

    # ---------------------------------------------------------------- injection

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        if is_routed(model):
            raise ValueError(
                f"this {type(model).__name__} carries an iLoRA adapter already: call unload() on "
                "the PeftModel that wraps it, or add_adapter(...) for a second one"
            )
        _refuse_other_adapters(model)
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Add an adapter: its gate, its layers, and once for the model the routing hooks."""
        before = Snapshot(self, self.peft_config[adapter_name])
        first = GATES not in self._modules
        if first:  # BaseTuner.__init__ injects before a subclass could set anything up
            self.add_module(GATES, nn.ModuleDict())
            self.routing_state = RoutingState([], [])
            self.adapters = Adapters(self, self.routing_state)
        config = self.adapters.config(adapter_name)
        config.check()
        others = {name: _trains(gate) for name, gate in self.adapters.gates.items()}
        if config.gate_scope == "shared":
            with torch.device("meta") if low_cpu_mem_usage else nullcontext():
                self.adapters.gates[adapter_name] = make_gate(config, config.routing_dim)
        try:
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
            )
            with torch.device("meta") if low_cpu_mem_usage else nullcontext():
                self._settle_gate(adapter_name)
        except BaseException:
            before.restore()
            raise
        for name, requires_grad in others.items():
            self.adapters.gates[name].requires_grad_(requires_grad)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        layers = self.adapters.layers(adapter_name)
        by_name = {layer.name: layer.layer for layer in layers}
        for layer in layers:
            layer.update.meet(layer.layer, by_name)
        self.adapters.any_layer()
        if first:
            self.routing_hooks = RoutingHooks(model, self.routing_state, self.adapters)

    def _settle_gate(self, adapter_name: str) -> None:
        """Tell a gate that makes coefficients for each layer which layers there are."""
        gates = self.adapters.gates
        if adapter_name not in gates or not self.adapters.shared_gate(adapter_name).by_layer:
            return
        gate, layers = self.adapters.shared_gate(adapter_name), self.adapters.layers(adapter_name)
        gate.settle([(layer.name, layer.update.coordinates) for layer in layers])
        for place, layer in enumerate(layers):
            layer.update.place = place
        trains = adapter_name in self.active_adapters
        gate.requires_grad_(trains and not self.adapters.config(adapter_name).inference_mode)

    def _prepare_model(self, peft_config: LoraConfig, model: nn.Module) -> None:
        # Called before the first layer is replaced: the place to refuse.
        super()._prepare_model(peft_config, model)
        assert isinstance(peft_config, ILoRAConfig)
        check_in_memory(model)
        if peft_config.gate_input == "prompt":
            check_prompt_width(model, peft_config.routing_dim)
        # PEFT names what "all-linear" stands for only later.
        named = _maybe_include_all_linear_layers(copy.copy(peft_config), model)
        assert isinstance(named, LoraConfig)
        warn_of_unknown_names(model, named)
        for name, module in model.named_modules():
            if self._check_target_module_exists(named, name):
                if not isinstance(module, LoraLayer):
                    leaf = name.rpartition(".")[-1]
                    _check_lora_target_modules_mamba(LoraConfig(), model, leaf)
                check_target(name, model, peft_config)

    def _get_module_names_tied_with_embedding(self) -> list[str]:
        # PEFT names the layer inside of one that an earlier adapter has replaced
        names = super()._get_module_names_tied_with_embedding()
        return [name.removesuffix(".base_layer") for name in names]

    def _create_and_replace(
        self,
        lora_config: ILoRAConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        # The layer itself is a plain LoRA of the total rank; the variant puts the gate in.
        with lora_config.of_total_rank():
            super()._create_and_replace(
                lora_config,
                adapter_name,
                target,
                target_name,
                parent,
                current_key,
                parameter_name=parameter_name,
            )
        layer = routed_layer(getattr(parent, target_name), current_key)
        if self._check_tied_module_exists(lora_config, current_key):
            tie(layer, self.model.get_input_embeddings(), adapter_name, current_key)
        groups = getattr(layer.get_base_layer(), "groups", 1)
        assert isinstance(groups, int)
        own = coordinates(lora_config.ranks(layer.r[adapter_name]), groups)
        if lora_config.gate_scope == "shared":
            gate = self.adapters.shared_gate(adapter_name)
        else:
            gate = _add_gate(layer, adapter_name, lora_config, own)
        layer.lora_variant[adapter_name] = UPDATES[type(layer).__name__](
            gate,
            self.routing_state,
            lora_config,
            own,
            current_key,
        )

    @staticmethod
    def _create_new_module(
        lora_config: LoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        own = own_layer(target)
        if own is None or lora_config.fan_in_fan_out or kwargs.get("parameter_name"):
            return LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        kwargs.pop("parameter_name", None)
        return own(target, adapter_name, config=lora_config, **kwargs)

    # ---------------------------------------------------------------- routing

    @contextmanager
    def routing(self, routing_embeds: Tensor) -> Iterator[None]:
        """Route every forward and `generate` of the block, for code that cannot pass the keyword.

        Args:
            routing_embeds: [batch, routing_dim], floating point; with `gate="hard"` expert ids,
                [batch], int64.

        Raises:
            RuntimeError: Inside another `routing` block, where two routings would compete.
            TypeError: Not a tensor of that dtype.
            ValueError: Wrong shape, NaN or infinity, no such expert, no values (meta device); no
                adapter would read it.
        """
        self.routing_state.drop_aborted_forward()
        if self.routing_state.current is not None:
            raise RuntimeError(
                "model.routing(...) is already open in this thread: close it before opening another"
            )
        self.adapters.check_readable(routing_embeds)
        configs = {name: self.adapters.config(name) for name in self.active_adapters}
        readers = {name: config for name, config in configs.items() if config.gate_input != "token"}
        check_has_values(routing_embeds, self.model)
        embeds = checked_embeds(routing_embeds, readers)
        bind_checkpoints(self.model, self.routing_state, self.adapters)
        with self.routing_state.context(Routing(embeds, "context")):
            yield

    def prompt_embeds(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return what `gate_input="prompt"` reads: the mean input embedding of each prompt.

        Args:
            input_ids: [batch, length], int64.
            attention_mask: [batch, length]; without it every token counts.
            labels: [batch, length]; the prompt ends before the first label that is not -100.
            inputs_embeds: [batch, length, width], in place of `input_ids`.

        Returns:
            [batch, width], to be passed as `routing_embeds`, to `export_lora` for instance.

        Raises:
            ValueError: Neither ids nor embeddings, or a row without a prompt token.
        """
        return prompt_embeds(self.model, input_ids, inputs_embeds, attention_mask, labels)


def _add_gate(layer: LoraLayer, adapter_name: str, config: ILoRAConfig, own: Coordinates) -> Gate:
    """Give a layer a gate of its own, as one more adapter module that PEFT manages."""
    assert isinstance(layer, nn.Module)
    if not hasattr(layer, GATES):
        layer.add_module(GATES, nn.ModuleDict())
        layer.adapter_layer_names = (*layer.adapter_layer_names, GATES)
    like = up_projection(layer, adapter_name)
    width = layer.in_features if config.gate_input == "token" else config.routing_dim
    assert width is not None
    gate = make_gate(config, width, own).to(like.device)
    getattr(layer, GATES)[adapter_name] = gate
    return gate


def _refuse_other_adapters(model: nn.Module) -> None:
    """Refuse a base model that carries another adapter, whose layers would be taken over."""
    for name, module in model.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            raise ValueError(
                f"this {type(model).__name__} carries another PEFT adapter already ({name!r} is a "
                f"{type(module).__module__.removeprefix('peft.')}.{type(module).__name__}): call "
                "merge_and_unload() or unload() on the PeftModel that wraps it first"
            )


def _trains(gate: nn.Module) -> bool:
    """Whether a gate receives gradients."""
    return any(parameter.requires_grad for parameter in gate.parameters())
