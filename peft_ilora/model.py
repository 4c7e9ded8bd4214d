"""ILoRAModel: injects gated layers and gives the routing its interface."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners import lora
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import (
    _check_lora_target_modules_mamba,
    _maybe_include_all_linear_layers,
)
from torch import Tensor, nn

from peft_ilora.checks import check_fits, checked_embeds
from peft_ilora.config import ILoRAConfig
from peft_ilora.coordinates import coordinates
from peft_ilora.gate import Gate, HardGate, make_gate
from peft_ilora.gates import own_gate, trains
from peft_ilora.hooks import RoutingHooks, is_routed
from peft_ilora.linear import GatedLinear, Linear, uncast
from peft_ilora.merging import MergeableLoraModel
from peft_ilora.prompt import check_prompt_width, prompt_embeds
from peft_ilora.routing import Routing, RoutingState
from peft_ilora.saving import GATES
from peft_ilora.siblings import followers
from peft_ilora.statistics import Statistics, entropy, load_balancing, statistics
from peft_ilora.targets import MIXING, UPDATES, check_in_memory, check_target, routed_layer


class ILoRAModel(MergeableLoraModel):
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
        ValueError: A targeted module does not see a batch of instances; `model` is wrapped already.
    """

    # The shared gate lives here, not in a layer: PEFT then refuses bare injection with a message.
    uses_shared_state = True
    _sample = ""
    """Name of a layer, looked at in every forward."""

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
        first = GATES not in self._modules
        if first:  # BaseTuner.__init__ injects before a subclass could set anything up
            self.add_module(GATES, nn.ModuleDict())
            self.routing_state = RoutingState()
        config = self._config(adapter_name)
        config.check()
        others = {name: trains(gate) for name, gate in self._gates.items()}
        if config.gate_scope == "shared":
            with torch.device("meta") if low_cpu_mem_usage else nullcontext():
                self._gates[adapter_name] = make_gate(config, config.routing_dim)
        try:
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
            )
        except BaseException:
            if adapter_name in self._gates:
                del self._gates[adapter_name]
            if first:
                _take_layers_off(model)
            raise
        for name, requires_grad in others.items():
            self._gates[name].requires_grad_(requires_grad)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self._introduce_siblings(adapter_name)
        self._any_layer()
        if first:
            self.routing_hooks = RoutingHooks(
                model,
                self.routing_state,
                self._routed_adapters,
                self._check_readable,
                self._shared_gates,
            )

    def _introduce_siblings(self, adapter_name: str) -> None:
        layers = {layer.name: layer for layer in self._layers(adapter_name)}
        for name, later in followers(layers).items():
            update = layers[name].update
            if isinstance(update, GatedLinear):
                update.followers = [layers[other].layer for other in later]

    def _prepare_model(self, peft_config: LoraConfig, model: nn.Module) -> None:
        # Called before the first layer is replaced: the place to refuse.
        super()._prepare_model(peft_config, model)
        assert isinstance(peft_config, ILoRAConfig)
        check_in_memory(model)
        if peft_config.gate_input == "prompt":
            check_prompt_width(model, peft_config.routing_dim)
        # PEFT names what "all-linear" stands for only later.
        named = _maybe_include_all_linear_layers(copy.copy(peft_config), model)
        for name, module in model.named_modules():
            if self._check_target_module_exists(named, name):
                if not isinstance(module, LoraLayer):
                    leaf = name.rpartition(".")[-1]
                    _check_lora_target_modules_mamba(LoraConfig(), model, leaf)
                check_target(name, model, peft_config)

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
        if type(layer) is lora.Linear:
            layer.__class__ = Linear  # PEFT has chosen the back end that it extends
        if lora_config.gate_scope == "shared":
            gate = self._shared_gate(adapter_name)
        else:
            gate = own_gate(layer, adapter_name, lora_config)
        if UPDATES[type(layer).__name__] is GatedLinear:
            setattr(layer, "_cast_input_dtype", uncast)  # noqa: B010  # the update casts itself
        groups = getattr(layer.get_base_layer(), "groups", 1)
        assert isinstance(groups, int)
        layer.lora_variant[adapter_name] = UPDATES[type(layer).__name__](
            gate,
            self.routing_state,
            lora_config,
            coordinates(lora_config.ranks(layer.r[adapter_name]), groups),
            current_key,
        )

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
            ValueError: Wrong shape, NaN or infinity, no such expert; no adapter would read it.
        """
        self.routing_state.drop_aborted_forward()
        if self.routing_state.current is not None:
            raise RuntimeError(
                "model.routing(...) is already open in this thread: close it before opening another"
            )
        self._check_readable(routing_embeds)
        configs = {name: self._config(name) for name in self.active_adapters}
        readers = {name: config for name, config in configs.items() if config.gate_input != "token"}
        embeds = checked_embeds(routing_embeds, readers)
        self.routing_hooks.bind_checkpoints(self.model)
        with self.routing_state.bound(Routing(embeds, "context")):
            yield

    def prompt_embeds(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """What an adapter with `gate_input="prompt"` reads: the mean input embedding of prompts.

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

    def _routed_adapters(self) -> dict[str, ILoRAConfig]:
        """The adapters that read a routing now."""
        layer = self._any_layer()
        if layer is None or layer.disable_adapters or self._merged_adapters():
            return {}
        mixed = self.routing_state.adapter_names
        names = self.active_adapters if mixed is None else sorted(set(mixed) - {"__base__"})
        configs = {name: self._config(name) for name in names}
        return {name: config for name, config in configs.items() if config.gate_input != "token"}

    def _shared_gates(self) -> dict[str, Gate | HardGate]:
        """The gates that all layers of an adapter share, of the adapters that read a routing."""
        return {
            name: self._shared_gate(name) for name in self._routed_adapters() if name in self._gates
        }

    def _check_readable(self, routing_embeds: Any) -> None:
        """Refuse a routing that the active adapters would ignore."""
        layer, names = self._any_layer(), self.active_adapters
        if layer is None or layer.disable_adapters or not names:
            return
        merged = self._merged_adapters()
        if merged and not self._is_merged_with(routing_embeds):
            raise ValueError(
                f"routing_embeds was passed but the adapters {merged} are merged into the base "
                f"weights, for another instance or not with all of the active {names}: call "
                "unmerge_adapter() first"
            )
        if all(self._config(name).gate_input == "token" for name in names):
            raise ValueError(
                "routing_embeds was passed but the active adapters route tokens by their hidden "
                "state (gate_input='token'): leave it out"
            )

    def _merged_adapters(self) -> list[str]:
        if not self.merges:
            return []
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        return sorted({adapter for layer in layers for adapter in layer.merged_adapters})

    def _is_merged_with(self, routing_embeds: Any) -> bool:
        """Whether every row of a routing is the instance that the adapters are merged for."""
        for name in self.active_adapters:
            embeds = checked_embeds(routing_embeds, {name: self._config(name)})
            for layer in self._layers(name):
                merged = layer.update.merged_weights
                if name not in layer.layer.merged_adapters or merged is None:
                    return False
                weights = layer.update.gate(embeds)
                if not torch.allclose(weights, merged.to(weights).expand_as(weights)):
                    return False
        return True

    def _any_layer(self) -> LoraLayer | None:
        """One that tells whether adapters are enabled; searched for when it has moved."""
        try:
            found = self.model.get_submodule(self._sample)
        except AttributeError:
            found = None
        if isinstance(found, LoraLayer):
            return found
        named = ((n, m) for n, m in self.model.named_modules() if isinstance(m, LoraLayer))
        name, layer = next(named, ("", None))
        if not torch.compiler.is_compiling():
            self._sample = name
        return layer

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
            for layer in self._layers(name):
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

    # ---------------------------------------------------------------- inspection

    def gate_weights(
        self, routing_embeds: Tensor, adapter_name: str | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Expert weights of instances, for inspection.

        Args:
            routing_embeds: [batch, routing_dim], floating point; with `gate="hard"` expert ids.
            adapter_name: Which adapter; by default the active one.

        Returns:
            [batch, num_experts]; with `gate_scope="per_module"` one for each module name.

        Raises:
            ValueError: Unknown adapter, wrong shape, NaN or infinity; tokens are routed.
        """
        name = self._known_adapter(adapter_name)
        config = self._config(name)
        if config.gate_input == "token":
            raise ValueError(
                f"adapter {name!r} routes tokens by their hidden state (gate_input='token'), which "
                "only a forward knows: run one and call routing_statistics()"
            )
        embeds = checked_embeds(routing_embeds, {name: config})
        if name in self._gates:
            return self._shared_gate(name)(embeds)
        return {layer.name: layer.update.gate(embeds) for layer in self._layers(name)}

    def routing_statistics(
        self, adapter_name: str | None = None
    ) -> Statistics | dict[str, Statistics]:
        """What the experts do in this thread's last routed forward, in plain numbers.

        Tokens, where these are routed, are those of the model's last forward; other gates are
        asked again, so after an optimiser's step with its new weights. All rows of a mixed batch
        count.

        Args:
            adapter_name: Which adapter; by default the active one.

        Returns:
            `rows` (tokens, where these are routed; padding counts), `utilisation` (mean weight of
            each expert), `chosen` (share of rows in which an expert weighs most), `entropy` and
            `max_entropy` (nats); with `gate_scope="per_module"` such figures for each module name.

        Raises:
            ValueError: Unknown adapter, or no forward has been routed yet.
        """
        weights = self._last_weights(self._known_adapter(adapter_name))
        if isinstance(weights, Tensor):
            return statistics(weights)
        return {name: statistics(rows) for name, rows in weights.items()}

    def routing_losses(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """Terms that a trainer may add to its loss, of the last routed forward.

        Call it before `backward()`, which frees what token gates have computed.

        Args:
            adapter_name: Which adapter; by default the active one.

        Returns:
            `load_balancing` (1 where the load is even, up to num_experts) and `entropy` (nats), two
            scalars with gradients to the gate, averaged over modules. Add a positive multiple of
            the first to even the load out, of the second to sharpen the gate (negative: soften).

        Raises:
            ValueError: Unknown adapter, or no forward has been routed yet with gradients.
        """
        name = self._known_adapter(adapter_name)
        found = self._last_weights(name)
        weights = [found] if isinstance(found, Tensor) else list(found.values())
        if self._config(name).gate_input == "token" and not weights[0].requires_grad:
            raise ValueError(
                "the last forward ran without gradients, so it gives no routing losses: run one "
                "in training; under gradient checkpointing only with use_reentrant=False"
            )
        top_k = self._config(name).top_k or 1
        terms = {
            "load_balancing": [load_balancing(rows, top_k) for rows in weights],
            "entropy": [entropy(rows) for rows in weights],
        }
        return {key: torch.stack(values).mean() for key, values in terms.items()}

    def _last_weights(self, name: str) -> Tensor | dict[str, Tensor]:
        """[rows, num_experts] of the last forward; of each module where gates are per module."""
        config, routing = self._config(name), self.routing_state.last
        if config.gate_input == "token":
            seen = {layer.name: layer.update.token_weights for layer in self._layers(name)}
            found = {key: rows.flatten(0, -2) for key, rows in seen.items() if rows is not None}
            if found:
                return found
        elif routing is not None:
            check_fits(routing.embeds, {name: config})
            noise = routing.noise.get(name)
            if name in self._gates:
                return self._shared_gate(name)(routing.embeds, noise)
            return {
                layer.name: layer.update.gate(routing.embeds, noise) for layer in self._layers(name)
            }
        raise ValueError(
            f"adapter {name!r} has routed no forward yet in this thread: run the model first"
        )


def _take_layers_off(model: nn.Module) -> None:
    """Undo a first injection that failed halfway, as at a back end that only PEFT could name."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in layers:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
