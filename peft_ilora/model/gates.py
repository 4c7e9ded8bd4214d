"""Gates as parameters of a model: trained, frozen, moved, deleted and saved with their adapter.

PEFT manages what lies in its layers. A gate that all layers share lies in the tuner instead, so its
lifecycle is managed here.
"""

import warnings
from collections.abc import Iterator, Sequence

from peft import PeftConfig
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

from peft_ilora.layers.adapters import Adapters
from peft_ilora.layers.computed import current, is_computed
from peft_ilora.saving import check_loaded_keys, check_loaded_tensors, checkpoint_key


class GateLifecycle(LoraModel):
    """A LoraModel whose adapters have gates."""

    adapters: Adapters

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters; their gates become trainable unless `inference_mode`."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._train_gates(trainable=not inference_mode)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        self._train_gates(trainable=enabled)

    def _train_gates(self, trainable: bool) -> None:
        for name, gate in self.adapters.gates.items():
            gate.requires_grad_(trainable and name in self.active_adapters)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Train or freeze adapters together with their gates."""
        super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            if name in self.adapters.gates:
                self.adapters.gates[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter with its gate."""
        active = list(self.active_adapters)
        super().delete_adapter(adapter_name)
        # PEFT lets layers fall back on another adapter, but asks the first layer only which
        self.active_adapter = self.adapters.active_in_layers()
        if adapter_name in self.adapters.gates:
            del self.adapters.gates[adapter_name]
        if list(self.active_adapters) != active:
            self._train_gates(trainable=True)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str) -> None:
        # PEFT calls this on every module that has it, also after loading into meta tensors.
        layers = self.adapters.layers(adapter_name)
        if adapter_name not in self.adapters.gates or not layers:
            return
        gate, like = self.adapters.shared_gate(adapter_name), layers[0].b
        on_meta = any(tensor.is_meta for tensor in (like, *gate.parameters()))
        if not on_meta:
            gate.to(like.device)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.adapters.layers(adapter_name):
            layer.update.gate.to(layer.b.dtype)

    # ---------------------------------------------------------------- saving and loading

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        found = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        if any("._fsdp_wrapped_module" in name for name, _ in model.named_modules()):
            # FSDP1 renames wrapped modules, by which PEFT selects, but not the state dict's keys
            found |= {k: v for k, v in state_dict.items() if checkpoint_key(k, adapter_name)}
        found = _with_weights(model, adapter_name, found)
        empty = [k for k, v in found.items() if checkpoint_key(k, adapter_name) and not v.numel()]
        if empty:
            warnings.warn(
                f"{len(empty)} tensors of adapter {adapter_name!r} are empty, {empty[0]!r} first: "
                "their shards have not been gathered. Save through Trainer or "
                "accelerator.get_state_dict(model), and pass the result as state_dict",
                stacklevel=2,
            )
        return found

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
        for module, key, name in _computed(model, adapter_name):
            raise ValueError(
                f"{key} is computed (a {type(module).__name__}, pruned, normed or parametrised), "
                f"so no saved {name!r} can be loaded into it: make it plain by prune.remove, "
                "remove_weight_norm or remove_parametrizations of torch.nn.utils"
            )
        own = model.state_dict()
        keys = (checkpoint_key(key, adapter_name) for key in own)
        check_loaded_keys((key for key in keys if key is not None), state_dict)
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_loaded_tensors(found, own)
        return found


def _computed(model: nn.Module, adapter_name: str) -> Iterator[tuple[nn.Module, str, str]]:
    """Find an adapter's computed weights: their module, their key in the model and their name."""
    for path, module in model.named_modules():
        for name in ("weight", "bias", adapter_name):  # an embedding's matrices have its name
            key = f"{path}.{name}"
            if checkpoint_key(key, adapter_name) and is_computed(module, name):
                yield module, key, name


def _with_weights(
    model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Put computed weights in the place of what they are computed from, which only a model with
    the same pruning or parametrisation could load.
    """
    found = dict(state_dict)
    for module, key, name in _computed(model, adapter_name):
        path = key.removesuffix(name)
        sources = (f"{key}_", f"{path}parametrizations.{name}.")
        found = {k: v for k, v in found.items() if not k.startswith(sources)}
        found[key] = current(module, name).detach().clone()
    return found
