"""Mixed batches: PEFT's `adapter_names`, one adapter for each row."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from peft_ilora.layers.adapters import Adapters
from peft_ilora.layers.kinds import MIXING
from peft_ilora.routing.binding import RoutingState


class MixedBatches(LoraModel):
    """A LoraModel whose gates read the rows of their own adapter only."""

    adapters: Adapters
    routing_state: RoutingState

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Add an adapter; layers that cannot mix batches refuse to, also when called by name."""
        super().inject_adapter(*args, **kwargs)
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer) and type(layer).__name__ not in MIXING:
                assert isinstance(layer, nn.Module)
                if _refuse_mixing not in layer._forward_pre_hooks.values():
                    layer.register_forward_pre_hook(_refuse_mixing, with_kwargs=True)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is not None:
            self._check_mixing(names)
        with self.routing_state.mixed(names):
            try:
                with super()._enable_peft_forward_hooks(*args, **kwargs):
                    yield
            except BaseException:
                self._remove_mixing_hooks()  # PEFT leaves them behind
                raise

    def _check_mixing(self, adapter_names: list[str]) -> None:
        for name in sorted(set(adapter_names) & set(self.peft_config)):
            for layer in self.adapters.layers(name):
                kind = type(layer.layer).__name__
                if kind not in MIXING:
                    raise _mixing_error(name, f"{layer.name}, a {kind}")

    def _remove_mixing_hooks(self) -> None:
        for module in self.modules():
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, partial) and "adapter_names" in hook.keywords:
                    del module._forward_pre_hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)


def _refuse_mixing(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Guard a layer that is called by itself, where no tuner has looked at `adapter_names`."""
    variants = layer.lora_variant
    assert isinstance(variants, dict)
    for name in kwargs.get("adapter_names") or ():
        if name in variants:
            raise _mixing_error(name, f"this {type(layer).__name__}")


def _mixing_error(adapter_name: str, what: str) -> ValueError:
    return ValueError(
        f"adapter_names: adapter {adapter_name!r} adapts {what}, and PEFT mixes batches in such "
        "layers past the gate: call set_adapter between forwards, or adapt linear layers only"
    )
