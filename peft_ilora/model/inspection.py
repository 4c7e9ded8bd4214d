"""What the gates of a model do: coefficients, statistics, and terms for a loss."""

import torch
from peft.tuners.lora import LoraModel
from torch import Tensor

from peft_ilora.gating import Gate, GateForm
from peft_ilora.gating.form import Statistics
from peft_ilora.layers.adapters import Adapters
from peft_ilora.routing.binding import RoutingState
from peft_ilora.routing.checks import check_fits, checked_embeds

_SHARED = ""
"""Stands for the module name of a gate that all layers share."""


class Inspection(LoraModel):
    """A LoraModel whose gates can be looked at."""

    adapters: Adapters
    routing_state: RoutingState

    def gate_weights(
        self, routing_embeds: Tensor, adapter_name: str | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return the coefficients of instances: of a softmax the weights of experts.

        Args:
            routing_embeds: [batch, routing_dim], floating point; with `gate="hard"` expert ids.
            adapter_name: Which adapter; by default the active one.

        Returns:
            [batch, num_experts], or what another `gate_form` has in its place: [batch, rank] of
            `sigmoid` (factors), `scale` (s) and `shift` (t), [batch, 2 * rank] of `scale_shift` (s,
            then t), [batch, rank * rank] of `square` (M). With `gate="trunk"` or
            `gate_scope="per_module"` one for each module name.

        Raises:
            ValueError: Unknown adapter, wrong shape, NaN or infinity; tokens are routed.
        """
        name = self.adapters.known(adapter_name)
        config = self.adapters.config(name)
        if config.gate_input == "token":
            raise ValueError(
                f"adapter {name!r} routes tokens by their hidden state (gate_input='token'), which "
                "only a forward knows: run one and call routing_statistics()"
            )
        embeds = checked_embeds(routing_embeds, {name: config})
        found = {module: given for module, (_, given) in self._given(name, embeds).items()}
        return found.get(_SHARED, found)

    def routing_statistics(
        self, adapter_name: str | None = None
    ) -> Statistics | dict[str, Statistics]:
        """Return plain numbers of what the gate did in this thread's last routed forward.

        Where tokens are routed, they are those of the model's last forward. Other gates are
        evaluated again, so after an optimiser's step with its new weights. All rows of a mixed
        batch count.

        Args:
            adapter_name: Which adapter; by default the active one.

        Returns:
            `rows` (tokens, where these are routed; padding counts); of a softmax `utilisation`
            (mean weight of each expert), `chosen` (share of rows in which an expert weighs most),
            `entropy` and `max_entropy` (nats); of another form `_mean`, `_std` and `_largest`
            (magnitude) of `factor`, `scale`, `shift` or `matrix`. With `gate="trunk"` or
            `gate_scope="per_module"` such figures for each module name.

        Raises:
            ValueError: Unknown adapter, or no forward has been routed yet.
        """
        last = self._last(self.adapters.known(adapter_name))
        found = {module: form.statistics(given) for module, (form, given) in last.items()}
        return found.get(_SHARED, found)

    def routing_losses(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """Return terms that a trainer may add to its loss, of the last routed forward.

        Call it before `backward()`, which frees what token gates have computed.

        Args:
            adapter_name: Which adapter; by default the active one.

        Returns:
            Scalars with gradients to the gate, averaged over modules. Of a softmax `load_balancing`
            (1 where the load is even, up to num_experts) and `entropy` (nats): add a positive
            multiple of the first to even the load out, of the second to sharpen the gate (negative:
            soften). Of every other form `deviation`, the mean square of what takes an instance away
            from plain LoRA: add a positive multiple to keep it near.

        Raises:
            ValueError: Unknown adapter, or no forward has been routed yet with gradients.
        """
        name = self.adapters.known(adapter_name)
        last = list(self._last(name).values())
        if self.adapters.config(name).gate_input == "token" and not last[0][1].requires_grad:
            raise ValueError(
                "the last forward ran without gradients, so it gives no routing losses: run one "
                "in training; under gradient checkpointing only with use_reentrant=False"
            )
        terms = [form.losses(given) for form, given in last]
        return {key: torch.stack([term[key] for term in terms]).mean() for key in terms[0]}

    def _given(
        self, name: str, z: Tensor, noise: Tensor | None = None
    ) -> dict[str, tuple[GateForm, Tensor]]:
        """Return an adapter's forms, and their coefficients of instances, by module name."""
        layers = {layer.name: layer.update for layer in self.adapters.layers(name)}
        if name not in self.adapters.gates:
            return {key: (own.gate.form, own.gate(z, noise)) for key, own in layers.items()}
        gate: Gate = self.adapters.shared_gate(name)
        given = gate(z, noise)
        if not gate.by_layer:
            return {_SHARED: (gate.form, given)}
        places = given.unbind()
        return {
            key: (gate.form, gate.cut(places[own.place or 0], own.coordinates))
            for key, own in layers.items()
        }

    def _last(self, name: str) -> dict[str, tuple[GateForm, Tensor]]:
        """Return an adapter's forms, and their coefficients in the last forward, by module name."""
        config, routing = self.adapters.config(name), self.routing_state.last
        found: dict[str, tuple[GateForm, Tensor]] = {}
        if config.gate_input == "token":
            for layer in self.adapters.layers(name):
                given = layer.update.token_coefficients
                if given is not None:
                    found[layer.name] = layer.update.gate.form, given.flatten(0, -2)
        elif routing is not None:
            check_fits(routing.embeds, {name: config})
            found = self._given(name, routing.embeds, routing.noise.get(name))
        if not found:
            raise ValueError(
                f"adapter {name!r} has routed no forward yet in this thread: run the model first"
            )
        return found
