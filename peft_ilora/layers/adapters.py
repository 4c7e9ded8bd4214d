"""The adapters of one model as they are now: their configurations, gates and layers."""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating import Gate
from peft_ilora.layers.update import GatedUpdate, up_projection
from peft_ilora.routing.binding import RoutingState
from peft_ilora.routing.checks import checked_embeds
from peft_ilora.saving import GATES


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer that an adapter has been added to."""

    name: str
    """Its name in the base model."""
    adapter: str
    layer: LoraLayer
    update: GatedUpdate

    @property
    def b(self) -> Tensor:
        """B, [out, rank, ...]."""
        return up_projection(self.layer, self.adapter)

    def folded_b(self, coefficients: Tensor) -> Tensor:
        """Return B of the plain LoRA under one instance's coefficients."""
        return self.update.gate.form.fold(self.b, coefficients, self.update.coordinates)

    def bias(self, coefficients: Tensor) -> Tensor | None:
        """Return the bias on B of that plain LoRA, [out], unscaled; None: it has none."""
        return self.update.gate.form.bias(self.b, coefficients, self.update.coordinates)

    def delta_weight(self, coefficients: Tensor) -> Tensor:
        """Return what merging one instance adds to the base weight."""
        return self.update.delta_weight(self.layer, self.adapter, coefficients)


class Adapters:
    """Looks up the adapters of a tuner.

    Args:
        tuner: PEFT's LoRA model, with a module dictionary of gates.
        state: Its bindings.
    """

    def __init__(self, tuner: LoraModel, state: RoutingState) -> None:
        self.tuner = tuner
        self.state = state
        self.may_be_merged = False
        """Set by merging, so that a forward need not ask every layer."""
        self._sample = ""
        """Name of a layer that is looked at in every forward."""

    # ---------------------------------------------------------------- one adapter

    def known(self, adapter_name: str | None) -> str:
        """Return an adapter's name; of None, the active one's.

        Raises:
            ValueError: There is no such adapter.
        """
        active = next(iter(self.tuner.active_adapters), None)
        name = active if adapter_name is None else adapter_name
        if name is None or name not in self.tuner.peft_config:
            raise ValueError(
                f"adapter_name={name!r} does not exist; there are {sorted(self.tuner.peft_config)}"
            )
        return name

    def config(self, adapter_name: str) -> ILoRAConfig:
        """Return an adapter's configuration.

        Raises:
            TypeError: Another method has been put over it.
        """
        config = self.tuner.peft_config[adapter_name]
        if not isinstance(config, ILoRAConfig):
            raise TypeError(
                f"adapter {adapter_name!r} has a {type(config).__name__}, so another PEFT method "
                "has taken over the layers of an iLoRA adapter: call unload() on the iLoRA's "
                "PeftModel before the base model is wrapped again"
            )
        return config

    def layers(self, adapter_name: str) -> list[AdaptedLayer]:
        """Return the layers that an adapter has been added to."""
        found = []
        for name, module in self.tuner.model.named_modules():
            if isinstance(module, LoraLayer):
                update = module.lora_variant.get(adapter_name)
                if isinstance(update, GatedUpdate):
                    found.append(AdaptedLayer(name, adapter_name, module, update))
        return found

    @property
    def gates(self) -> nn.ModuleDict:
        """The gates that all layers of an adapter share, by adapter."""
        gates = self.tuner._modules[GATES]
        assert isinstance(gates, nn.ModuleDict)
        return gates

    def shared_gate(self, adapter_name: str) -> Gate:
        """Return the gate that all layers of an adapter share."""
        gate = self.gates[adapter_name]
        assert isinstance(gate, Gate)
        return gate

    # ---------------------------------------------------------------- which are in force

    def active_in_layers(self) -> list[str]:
        """Return each layer's own active adapters, which PEFT lets differ from the tuner's."""
        names = [name for layer in self._lora_layers() for name in layer.active_adapters]
        return [name for name in dict.fromkeys(names) if name in self.tuner.peft_config]

    def reading(self) -> dict[str, ILoRAConfig]:
        """Return the adapters that read a routing now; none where they are disabled or merged."""
        layer = self.any_layer()
        if layer is None or layer.disable_adapters or self.merged():
            return {}
        mixed = self.state.adapter_names
        names = self.tuner.active_adapters if mixed is None else sorted(set(mixed) - {"__base__"})
        configs = {name: self.config(name) for name in names}
        return {name: config for name, config in configs.items() if config.gate_input != "token"}

    def shared_gates(self) -> dict[str, Gate]:
        """Return the gates that all layers of an adapter share, of the adapters in `reading`."""
        return {name: self.shared_gate(name) for name in self.reading() if name in self.gates}

    def check_readable(self, routing_embeds: Any) -> None:
        """Refuse a routing that the active adapters would ignore.

        Raises:
            ValueError: They are merged for another instance, or route tokens.
        """
        layer, names = self.any_layer(), self.tuner.active_adapters
        if layer is None or layer.disable_adapters or not names:
            return
        merged = self.merged()
        if merged and not self._is_merged_with(routing_embeds):
            raise ValueError(
                f"routing_embeds was passed but the adapters {merged} are merged into the base "
                f"weights, for another instance or not with all of the active {names}: call "
                "unmerge_adapter() first"
            )
        if all(self.config(name).gate_input == "token" for name in names):
            raise ValueError(
                "routing_embeds was passed but the active adapters route tokens by their hidden "
                "state (gate_input='token'): leave it out"
            )

    def merged(self) -> list[str]:
        """Return the adapters that are merged into a base weight."""
        if not self.may_be_merged:
            return []
        return sorted({name for layer in self._lora_layers() for name in layer.merged_adapters})

    def any_layer(self) -> LoraLayer | None:
        """Return one layer, which tells whether adapters are enabled; None: there is none.

        It is looked up by name, and searched for again when it has moved.
        """
        try:
            found = self.tuner.model.get_submodule(self._sample)
        except AttributeError:
            found = None
        if isinstance(found, LoraLayer):
            return found
        modules = self.tuner.model.named_modules()
        name, layer = next(((n, m) for n, m in modules if isinstance(m, LoraLayer)), ("", None))
        if not torch.compiler.is_compiling():
            self._sample = name
        return layer

    def _lora_layers(self) -> list[LoraLayer]:
        return [module for module in self.tuner.model.modules() if isinstance(module, LoraLayer)]

    def _is_merged_with(self, routing_embeds: Any) -> bool:
        """Whether every row of a routing is the instance that the adapters are merged for."""
        for name in self.tuner.active_adapters:
            embeds = checked_embeds(routing_embeds, {name: self.config(name)})
            for layer in self.layers(name):
                merged = layer.update.merged_coefficients
                if name not in layer.layer.merged_adapters or merged is None:
                    return False
                given = layer.update.coefficients_of(embeds)
                if not torch.allclose(given, merged.to(given).expand_as(given)):
                    return False
        return True
