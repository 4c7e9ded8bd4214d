"""ILoRAModel: injects gated layers, holds the shared gates, and gives the routing its interface."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.gate import Gate
from peft_ilora.hooks import RoutingHooks, is_routed
from peft_ilora.instance import AdaptedLayer, as_plain_lora, instance_b
from peft_ilora.layer import (
    GatedUpdate,
    check_target,
    merge_error,
    routed_layer,
)
from peft_ilora.peft_type import PREFIX
from peft_ilora.routing import Routing, RoutingState, checked_embeds
from peft_ilora.saving import GATES, check_loaded_keys, checkpoint_key


class ILoRAModel(LoraModel):
    """LoRA layers whose rank coordinates a gate scales per instance.

    Usually made by `get_peft_model(model, ILoRAConfig(...))`, whose PeftModel forwards `routing`,
    `gate_weights` and `merge_and_unload` to it.

    Args:
        model: The model to adapt.
        peft_config: The configuration, or one for each adapter name.
        adapter_name: The adapter's name.
        low_cpu_mem_usage: Create the adapter on the meta device.
        state_dict: Decides by its keys which layers are adapted.

    Raises:
        TypeError: A targeted module is no linear layer, or its back end would bypass the gate.
        ValueError: A targeted module does not see a batch of instances.
    """

    prefix = PREFIX
    # The shared gate lives here, not in a layer: PEFT then refuses bare injection with a message.
    uses_shared_state = True

    # ---------------------------------------------------------------- injection

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Add an adapter: its gate, its layers, and once for the model the routing hooks."""
        first = GATES not in self._modules
        if first and is_routed(model):
            raise ValueError(
                f"this {type(model).__name__} carries an iLoRA adapter already: call unload() on "
                "the PeftModel that wraps it, or add_adapter(...) for a second one"
            )
        if first:  # BaseTuner.__init__ injects before a subclass could set anything up
            self.add_module(GATES, nn.ModuleDict())
            self.routing_state = RoutingState()
        config = self._config(adapter_name)
        others = {name: _requires_grad(gate) for name, gate in self._gates.items()}
        if config.gate_scope == "shared":
            with torch.device("meta") if low_cpu_mem_usage else nullcontext():
                self._gates[adapter_name] = Gate(config)
        try:
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
            )
        except BaseException:
            if adapter_name in self._gates:
                del self._gates[adapter_name]
            raise
        for name, requires_grad in others.items():
            self._gates[name].requires_grad_(requires_grad)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        if first:
            self.routing_hooks = RoutingHooks(model, self.routing_state, self._routed_adapters)

    def _prepare_model(self, peft_config: LoraConfig, model: nn.Module) -> None:
        # Called before the first layer is replaced: the place to refuse.
        super()._prepare_model(peft_config, model)
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                continue
            if self._check_target_module_exists(peft_config, name):
                leaf = name.rpartition(".")[-1]
                _check_lora_target_modules_mamba(LoraConfig(), model, leaf)
                check_target(name, model)

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
        super()._create_and_replace(
            lora_config.to_lora_config(),
            adapter_name,
            target,
            target_name,
            parent,
            current_key,
            parameter_name=parameter_name,
        )
        layer = routed_layer(getattr(parent, target_name), current_key)
        if lora_config.gate_scope == "shared":
            gate = self._shared_gate(adapter_name)
        else:
            gate = _own_gate(layer, adapter_name, lora_config)
        layer.lora_variant[adapter_name] = GatedUpdate(
            gate, self.routing_state, lora_config, current_key
        )

    # ---------------------------------------------------------------- routing

    @contextmanager
    def routing(self, routing_embeds: Tensor) -> Iterator[None]:
        """Route every forward and `generate` of the block, for code that cannot pass the keyword.

        Args:
            routing_embeds: [batch, routing_dim], floating point.

        Raises:
            RuntimeError: Inside another `routing` block, where two routings would compete.
            TypeError: Not a float tensor.
            ValueError: Wrong shape, NaN or infinity.
        """
        self.routing_state.drop_aborted_forward()
        if self.routing_state.current is not None:
            raise RuntimeError(
                "model.routing(...) is already open in this thread: close it before opening another"
            )
        configs = {name: self._config(name) for name in self.active_adapters}
        embeds = checked_embeds(routing_embeds, configs)
        self.routing_hooks.bind_checkpoints(self.model)
        with self.routing_state.bound(Routing(embeds, "context")):
            yield

    def gate_weights(
        self, routing_embeds: Tensor, adapter_name: str | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Expert weights of instances, for inspection.

        Args:
            routing_embeds: [batch, routing_dim], floating point.
            adapter_name: Which adapter; by default the active one.

        Returns:
            [batch, num_experts]; with `gate_scope="per_module"` one for each module name.

        Raises:
            ValueError: Unknown adapter, wrong shape, NaN or infinity.
        """
        name = self._known_adapter(adapter_name)
        embeds = checked_embeds(routing_embeds, {name: self._config(name)})
        if name in self._gates:
            return self._shared_gate(name)(embeds)
        return {layer.name: layer.update.gate(embeds) for layer in self._layers(name)}

    def _routed_adapters(self) -> dict[str, ILoRAConfig]:
        layer = next((m for m in self.model.modules() if isinstance(m, LoraLayer)), None)
        if layer is None or layer.disable_adapters:
            return {}
        return {name: self._config(name) for name in self.active_adapters}

    def _config(self, adapter_name: str) -> ILoRAConfig:
        config = self.peft_config[adapter_name]
        assert isinstance(config, ILoRAConfig)
        return config

    def _known_adapter(self, adapter_name: str | None) -> str:
        active = next(iter(self.active_adapters), None)
        name = active if adapter_name is None else adapter_name
        if name is None or name not in self.peft_config:
            raise ValueError(
                f"adapter_name={name!r} does not exist; there are {sorted(self.peft_config)}"
            )
        return name

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names cannot be combined with iLoRA: one adapter already mixes per row by "
                "its routing_embeds; to compare adapters, call set_adapter between forwards"
            )
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            yield

    # ---------------------------------------------------------------- the gate as a parameter

    @property
    def _gates(self) -> nn.ModuleDict:
        """The shared gates, by adapter."""
        gates = self._modules[GATES]
        assert isinstance(gates, nn.ModuleDict)
        return gates

    def _shared_gate(self, adapter_name: str) -> Gate:
        gate = self._gates[adapter_name]
        assert isinstance(gate, Gate)
        return gate

    def _layers(self, adapter_name: str) -> list[AdaptedLayer]:
        found = []
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                update = module.lora_variant.get(adapter_name)
                if isinstance(update, GatedUpdate):
                    found.append(AdaptedLayer(name, adapter_name, module, update))
        return found

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters; their gates become trainable unless `inference_mode`."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._train_gates(trainable=not inference_mode)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        self._train_gates(trainable=enabled)

    def _train_gates(self, trainable: bool) -> None:
        for name, gate in self._gates.items():
            gate.requires_grad_(trainable and name in self.active_adapters)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Train or freeze adapters together with their gates."""
        super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            if name in self._gates:
                self._gates[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter with its gate."""
        active = list(self.active_adapters)
        super().delete_adapter(adapter_name)
        if adapter_name in self._gates:
            del self._gates[adapter_name]
        if list(self.active_adapters) != active:
            self._train_gates(trainable=True)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str) -> None:
        # PEFT calls this on every module that has it, also after loading into meta tensors.
        layers = self._layers(adapter_name)
        if adapter_name not in self._gates or not layers:
            return
        gate, device = self._shared_gate(adapter_name), layers[0].lora_b.weight.device
        if device.type != "meta" and gate.device.type != "meta":
            gate.to(device)

    # ---------------------------------------------------------------- saving and loading

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        own = checkpoint_key(key, adapter_name)
        return super()._remove_adapter_name_from_key(key, adapter_name) if own is None else own

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        keys = (checkpoint_key(key, adapter_name) for key in model.state_dict())
        check_loaded_keys((key for key in keys if key is not None), state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    # ---------------------------------------------------------------- merging

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        routing_embeds: Tensor | None = None,
    ) -> nn.Module:
        """Merge the adapter as it is for ONE instance into the base model.

        Args:
            progressbar: Show a progress bar.
            safe_merge: Check the merged weights for NaN.
            adapter_names: Adapters to merge; by default the active ones.
            routing_embeds: The instance, [1, routing_dim].

        Returns:
            The base model, unwrapped.

        Raises:
            ValueError: No instance, or more than one.
        """
        names = list(adapter_names or self.active_adapters)
        if routing_embeds is None:
            raise merge_error(names[0])
        self._check_merge_allowed()
        layers, weights = [], {}
        for name in names:
            layers += self._layers(name)
            for key, weight in self._instance_b(routing_embeds, name).items():
                weights[name, key] = weight
        with as_plain_lora(layers, weights):
            merged = super().merge_and_unload(progressbar, safe_merge, names)
        self.routing_hooks.remove()
        return merged

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> NoReturn:
        """Refuse: a merge needs an instance and, with it, unloads (`merge_and_unload`)."""
        raise merge_error((adapter_names or self.active_adapters)[0])

    def unload(self) -> nn.Module:
        """Take adapters and routing off the base model."""
        model = super().unload()
        self.routing_hooks.remove()
        return model

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: combining experts of several gates has no meaning."""
        raise ValueError(
            "add_weighted_adapter cannot combine iLoRA adapters, whose weights depend on the "
            "instance: export one instance of each with peft_ilora.export_lora and combine those"
        )

    def _instance_b(self, routing_embeds: Tensor, adapter_name: str) -> dict[str, Tensor]:
        name = self._known_adapter(adapter_name)
        embeds = checked_embeds(routing_embeds, {name: self._config(name)})
        return instance_b(self._layers(name), embeds)

    def plain_lora(
        self, routing_embeds: Tensor, adapter_name: str | None = None
    ) -> tuple[LoraConfig, dict[str, Tensor]]:
        """The plain LoRA that an adapter is for one instance; exact.

        Args:
            routing_embeds: The instance, [1, routing_dim].
            adapter_name: Which adapter; by default the active one.

        Returns:
            Its configuration, and B of each layer, [out, num_experts * r], by layer name.
        """
        name = self._known_adapter(adapter_name)
        return self._config(name).to_lora_config(), self._instance_b(routing_embeds, name)


def _own_gate(layer: LoraLayer, adapter_name: str, config: ILoRAConfig) -> Gate:
    """Give a layer a gate of its own, as one more adapter module that PEFT manages."""
    assert isinstance(layer, nn.Module)
    if not hasattr(layer, GATES):
        layer.add_module(GATES, nn.ModuleDict())
        layer.adapter_layer_names = (*layer.adapter_layer_names, GATES)
    weight = layer.lora_A[adapter_name].weight
    assert isinstance(weight, Tensor)
    gate = Gate(config).to(weight.device)
    getattr(layer, GATES)[adapter_name] = gate
    return gate


def _requires_grad(gate: nn.Module) -> bool:
    return next(gate.parameters()).requires_grad
