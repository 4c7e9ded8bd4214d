"""ILoRAModel: injects gated layers, holds the shared gates, and gives the routing its interface."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.gate import Gate
from peft_ilora.hooks import RoutingHooks
from peft_ilora.layer import (
    GatedUpdate,
    check_target,
    folded_b,
    merge_error,
    missing_routing_error,
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
    # The shared gate lives here and not in a layer: PEFT then refuses bare injection with a message.
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
        if first:  # BaseTuner.__init__ injects before a subclass could set anything up
            self.add_module(GATES, nn.ModuleDict())
            self.routing_state = RoutingState()
        config = self.peft_config[adapter_name]
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
            self.routing_hooks = RoutingHooks(
                model, self.routing_state, self._accepted, self._check_missing
            )

    def _prepare_model(self, peft_config: ILoRAConfig, model: nn.Module) -> None:
        # Called before the first layer is replaced: the place to refuse.
        super()._prepare_model(peft_config, model)
        for name, module in model.named_modules():
            if not isinstance(module, LoraLayer) and self._check_target_module_exists(
                peft_config, name
            ):
                check_target(name, module)

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
            gate = self._gates[adapter_name]
        else:
            gate = self._own_gate(layer, adapter_name, lora_config)
        layer.lora_variant[adapter_name] = GatedUpdate(
            gate, self.routing_state, lora_config, current_key
        )

    def _own_gate(self, layer: LoraLayer, adapter_name: str, config: ILoRAConfig) -> Gate:
        if not hasattr(layer, GATES):
            layer.add_module(GATES, nn.ModuleDict())
            layer.adapter_layer_names = (*layer.adapter_layer_names, GATES)
        gate = Gate(config).to(layer.lora_A[adapter_name].weight.device)
        getattr(layer, GATES)[adapter_name] = gate
        return gate

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
        configs = {name: self.peft_config[name] for name in self.active_adapters}
        embeds = checked_embeds(routing_embeds, configs)
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
        embeds = checked_embeds(routing_embeds, {name: self.peft_config[name]})
        if name in self._gates:
            return self._gates[name](embeds)
        return {key: layer.lora_variant[name].gate(embeds) for key, layer in self._layers(name)}

    def _accepted(self, routing_embeds: Any) -> Tensor | None:
        """Check a call's keyword; None where no adapter is enabled, so that nothing reads it."""
        if not self._routed_adapters():
            return None
        return checked_embeds(routing_embeds, self._routed_adapters())

    def _check_missing(self) -> None:
        for name, config in self._routed_adapters().items():
            if config.missing_routing == "error":
                raise missing_routing_error(name)

    def _routed_adapters(self) -> dict[str, ILoRAConfig]:
        layer = next((m for m in self.model.modules() if isinstance(m, LoraLayer)), None)
        if layer is None or layer.disable_adapters:
            return {}
        return {name: self.peft_config[name] for name in self.active_adapters}

    def _known_adapter(self, adapter_name: str | None) -> str:
        name = self.active_adapters[0] if adapter_name is None else adapter_name
        if name not in self.peft_config:
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

    # ---------------------------------------------------------------- the gate's life as a parameter

    @property
    def _gates(self) -> nn.ModuleDict:
        return self._modules[GATES]  # type: ignore[return-value]

    def _layers(self, adapter_name: str) -> list[tuple[str, LoraLayer]]:
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer) and adapter_name in module.lora_variant
        ]

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
        super().delete_adapter(adapter_name)
        if adapter_name in self._gates:
            del self._gates[adapter_name]
        self._train_gates(trainable=True)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str) -> None:
        # PEFT calls this on every module that has it, also after loading into meta tensors.
        if adapter_name not in self._gates:
            return
        gate, layers = self._gates[adapter_name], self._layers(adapter_name)
        weight = layers[0][1].lora_A[adapter_name].weight if layers else None
        if weight is not None and weight.device.type != "meta" and not _on_meta(gate):
            gate.to(weight.device)

    # ---------------------------------------------------------------- saving and loading

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        own = checkpoint_key(key, adapter_name)
        return super()._remove_adapter_name_from_key(key, adapter_name) if own is None else own

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: ILoRAConfig,
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
        plain = {name: self._instance_b(routing_embeds, name) for name in names}
        with self._as_plain_lora(plain):
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
        """B of each layer with one instance's gate folded in, by layer name."""
        name = self._known_adapter(adapter_name)
        embeds = checked_embeds(routing_embeds, {name: self.peft_config[name]})
        if embeds.shape[0] != 1:
            raise ValueError(
                f"routing_embeds has {embeds.shape[0]} rows; a plain LoRA holds one instance: pass "
                "[1, routing_dim], for instance routing_embeds[i : i + 1]"
            )
        with torch.no_grad():
            return {
                key: folded_b(layer.lora_B[name].weight, layer.lora_variant[name].gate(embeds)[0])
                for key, layer in self._layers(name)
            }

    @contextmanager
    def _as_plain_lora(self, plain: dict[str, dict[str, Tensor]]) -> Iterator[None]:
        """Let the layers be plain LoRAs for the block; undone if it fails."""
        undo = []
        for name, weights in plain.items():
            for key, layer in self._layers(name):
                lora_b = layer.lora_B[name]
                undo.append((layer, name, layer.lora_variant.pop(name), lora_b.weight))
                lora_b.weight = nn.Parameter(weights[key], requires_grad=False)
        try:
            yield
        except BaseException:
            for layer, name, variant, weight in undo:
                layer.lora_variant[name] = variant
                layer.lora_B[name].weight = weight
            raise

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
        return self.peft_config[name].to_lora_config(), self._instance_b(routing_embeds, name)


def _requires_grad(gate: nn.Module) -> bool:
    return next(gate.parameters()).requires_grad


def _on_meta(module: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in module.parameters())
