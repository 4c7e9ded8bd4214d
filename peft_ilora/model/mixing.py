"""Mixed batches: PEFT's `adapter_names`, one adapter for each row."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.lora import LoraModel

from peft_ilora.layers.adapters import Adapters
from peft_ilora.layers.kinds import MIXING
from peft_ilora.routing.binding import RoutingState


class MixedBatches(LoraModel):
    """A LoraModel whose gates read the rows of their own adapter only."""

    adapters: Adapters
    routing_state: RoutingState

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
                    raise ValueError(
                        f"adapter_names: adapter {name!r} adapts {layer.name}, a {kind}, and PEFT "
                        "mixes batches in such layers past the gate: call set_adapter between "
                        "forwards, or adapt linear layers only"
                    )

    def _remove_mixing_hooks(self) -> None:
        for module in self.modules():
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, partial) and "adapter_names" in hook.keywords:
                    del module._forward_pre_hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)
