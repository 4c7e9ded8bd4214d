"""Merging and export of an adapter as it is for one instance, or as it is without a routing."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from peft_ilora.errors import merge_error
from peft_ilora.instance.biases import (
    Shifts,
    check_biases,
    check_exportable,
    merged_shift,
    shifts_of,
)
from peft_ilora.instance.fold import as_plain_lora, coefficients_of
from peft_ilora.instance.sharing import prepare_base_weights
from peft_ilora.instance.undo import undone_on_failure
from peft_ilora.layers.adapters import AdaptedLayer, Adapters
from peft_ilora.layers.tying import is_tied
from peft_ilora.layers.update import add_to_bias
from peft_ilora.routing.checks import checked_embeds
from peft_ilora.routing.forward import RoutingHooks


class Merging(LoraModel):
    """A LoraModel that merges, and gives away, one instance of its adapters."""

    adapters: Adapters
    routing_hooks: RoutingHooks

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        routing_embeds: Tensor | None = None,
    ) -> nn.Module:
        """Merge adapters as they are for ONE instance and return the base model.

        Args:
            progressbar: Show a progress bar.
            safe_merge: Check the merged weights for NaN.
            adapter_names: Adapters to merge; by default the active ones.
            routing_embeds: The instance, [1, routing_dim]. May be left out under
                `missing_routing="uniform"`, which merges the even mixture.

        Returns:
            The base model, unwrapped.

        Raises:
            ValueError: No instance, or more than one; with `safe_merge` NaN or infinity; a base
                layer without a bias where the instance has one. Nothing has been merged then.
        """
        self._check_merge_allowed()
        names = list(adapter_names or self.adapters.active_in_layers())
        layers, coefficients, shifts = self._instance(self._unmerged(names), routing_embeds)
        check_biases(self.model, layers, shifts)
        if safe_merge:
            _check_finite(layers, coefficients, shifts)
        with undone_on_failure(self, layers, coefficients):
            prepare_base_weights(self.model, layers, coefficients, may_untie=True)
            with as_plain_lora(layers, coefficients):
                merged = super().merge_and_unload(progressbar, safe_merge, names)
        for layer in layers:
            shift = merged_shift(layer, shifts)
            if shift is not None:
                add_to_bias(layer.layer.get_base_layer(), shift)
        self.routing_hooks.remove()
        return merged

    def merge_adapter(
        self,
        adapter_names: list[str] | None = None,
        safe_merge: bool = False,
        routing_embeds: Tensor | None = None,
    ) -> None:
        """Merge adapters as they are for ONE instance, until `unmerge_adapter`.

        Args:
            adapter_names: Adapters to merge; by default the active ones.
            safe_merge: Check the merged weights for NaN.
            routing_embeds: The instance, [1, routing_dim]. May be left out under
                `missing_routing="uniform"`, which merges the even mixture.

        Raises:
            ValueError: No instance, more than one, or a back end that cannot take it back; with
                `safe_merge` NaN or infinity; a base layer without a bias where the instance has
                one. Nothing has been merged then.
        """
        self._check_merge_allowed()
        names = self._unmerged(adapter_names or self.adapters.active_in_layers())
        layers, coefficients, shifts = self._instance(names, routing_embeds)
        trained = [name for name in names if self.adapters.config(name).bias != "none"]
        check_biases(self.model, layers, shifts, trained)
        for layer in layers:
            _check_unmerge(layer)
        if safe_merge:
            _check_finite(layers, coefficients, shifts)
        with undone_on_failure(self, layers, coefficients):
            prepare_base_weights(self.model, layers, coefficients, may_untie=False)
            for layer in layers:
                layer.update.merged_coefficients = coefficients[layer.adapter, layer.name]
                layer.update.merged_bias = merged_shift(layer, shifts)
            super().merge_adapter(adapter_names, safe_merge)
        self.adapters.may_be_merged = True

    def unmerge_adapter(self) -> None:
        """Take all merged adapters out of the base weights again."""
        super().unmerge_adapter()
        self.adapters.may_be_merged = False

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        for name in self.peft_config:
            if self.adapters.config(name).layer_replication:
                raise ValueError(
                    f"adapter {name!r} replicates layers, which share their base weights, so it "
                    "cannot be merged into them: use peft_ilora.export_lora(model, z, folder)"
                )

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

    def plain_lora(
        self, routing_embeds: Tensor, adapter_name: str | None = None
    ) -> tuple[LoraConfig, dict[str, Tensor]]:
        """Return the plain LoRA that an adapter is for one instance; exact.

        Args:
            routing_embeds: The instance, [1, routing_dim].
            adapter_name: Which adapter; by default the active one.

        Returns:
            Its configuration, and B of each layer, [out, total rank, ...], by its name in the
            model: `...q_proj.lora_B.weight`; in a `gate_form` that shifts also the bias on B,
            [out], which LoRA multiplies by its scaling: `...q_proj.lora_B.bias`; and A, [total
            rank, in], of a layer that reads the input embedding's adapter (`ensure_weight_tying`)
            and so has none of its own.

        Raises:
            ValueError: No instance, or more than one; tokens are routed; a bias on B at a layer for
                which PEFT takes none (embeddings, HQQ, torchao).
        """
        name = self.adapters.known(adapter_name)
        layers, coefficients, shifts = self._instance([name], routing_embeds)
        check_exportable(layers, shifts)
        folded = {f"{layer}.lora_B.bias": shift for (_, layer), shift in shifts.items()}
        for layer in layers:
            embedding = name in layer.layer.lora_embedding_B
            key = f"{layer.name}.{'lora_embedding_B' if embedding else 'lora_B.weight'}"
            folded[key] = layer.folded_b(coefficients[name, layer.name])
            if is_tied(layer.layer, name):
                a = layer.layer.lora_A[name].weight
                assert isinstance(a, Tensor)
                folded[f"{layer.name}.lora_A.weight"] = a
        config = self.adapters.config(name).to_lora_config()
        if shifts:
            config.lora_bias = config.init_lora_weights = True  # PEFT combines it with no other
        return config, folded

    def _unmerged(self, adapter_names: Sequence[str]) -> list[str]:
        names = [self.adapters.known(name) for name in adapter_names]
        return [
            name
            for name in names
            if not any(name in layer.layer.merged_adapters for layer in self.adapters.layers(name))
        ]

    def _instance(
        self, adapter_names: Sequence[str], routing_embeds: Tensor | None
    ) -> tuple[list[AdaptedLayer], dict[tuple[str, str], Tensor], Shifts]:
        """Return the layers of adapters, and coefficients and biases by (adapter, layer name).

        Without a routing every form is a plain LoRA, and so has no biases.
        """
        layers, coefficients = [], {}
        for name in adapter_names:
            config = self.adapters.config(name)
            if config.gate_input == "token":
                raise ValueError(
                    f"adapter {name!r} routes tokens (gate_input='token'), so no instance of it "
                    "is a plain LoRA: it can be neither merged nor exported"
                )
            if routing_embeds is not None:
                checked_embeds(routing_embeds, {name: config})
            elif config.missing_routing == "error":
                raise merge_error(name)
            adapted = self.adapters.layers(name)
            for layer in adapted:
                if layer.b.is_meta:
                    raise ValueError(
                        f"adapter {name!r} is offloaded to the CPU or the disk at {layer.name}, "
                        "where its weights cannot be read: load the model without offloading "
                        "(device_map=None) to merge or to export it"
                    )
            layers += adapted
            for layer_name, chosen in coefficients_of(adapted, routing_embeds).items():
                coefficients[name, layer_name] = chosen
        shifts = {} if routing_embeds is None else shifts_of(layers, coefficients)
        return layers, coefficients, shifts


def _check_unmerge(layer: AdaptedLayer) -> None:
    if type(layer.layer).__name__ == "TorchaoLoraLinear":
        raise ValueError(
            f"{layer.name} has a torchao weight, for which PEFT's unmerge would bypass the gate: "
            "use merge_and_unload(routing_embeds=z), or export_lora"
        )


def _check_finite(
    layers: Sequence[AdaptedLayer], coefficients: dict[tuple[str, str], Tensor], shifts: Shifts
) -> None:
    """Look at every merged weight and bias before the first is changed."""
    for layer in layers:
        base = layer.layer.get_base_layer()
        weight = dequantize_module_weight(base)
        delta = layer.delta_weight(coefficients[layer.adapter, layer.name])
        merged = [weight + delta.to(weight.dtype)]
        shift = merged_shift(layer, shifts)
        if shift is not None:
            bias = base.bias
            assert isinstance(bias, Tensor)
            merged.append(bias + shift.to(bias.device, bias.dtype))
        if not all(torch.isfinite(tensor).all() for tensor in merged):
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {layer.adapter} seems to be "
                f"broken at {layer.name}, or the base weight; nothing has been merged"
            )
