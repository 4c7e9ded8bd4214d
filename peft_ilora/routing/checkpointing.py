"""Binds the routing of a forward again when a checkpointed block is recomputed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_ilora.gating import Gate
from peft_ilora.routing.binding import Memory, Routing, RoutingState
from peft_ilora.routing.readers import Readers


class RoutedCheckpoint:
    """A checkpoint function whose recomputation sees the routing of the forward it belongs to.

    The embeddings, and the coefficients of shared gates, travel as arguments. So they receive
    gradients under reentrant checkpointing too, and a shared gate is evaluated outside of the
    blocks, once. The recomputation may run in one of autograd's threads.

    Args:
        function: The model's checkpoint function.
        state: The model's bindings.
        readers: The model's adapters.
    """

    def __init__(self, function: Callable[..., Any], state: RoutingState, readers: Readers) -> None:
        self.function = function
        self.state = state
        self.readers = readers

    def __call__(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint `block(*args)`."""
        routing = self.state.current
        gates: dict[str, Gate] = {}
        if routing is not None and not torch.compiler.is_compiling():
            gates = self.readers.shared_gates()
        embeds = None if routing is None else routing.embeds
        coefficients = [self.state.coefficients(gate, name) for name, gate in gates.items()]
        run = partial(_run_bound, self.state, routing, list(gates.values()), block)
        return self.function(run, embeds, *coefficients, *args, **kwargs)


def bind_checkpoints(model: nn.Module, state: RoutingState, readers: Readers) -> None:
    """Let every checkpointed block of a model, or of a replica, remember its routing."""
    for module, name, function in _checkpoint_functions(model):
        if not isinstance(function, RoutedCheckpoint):
            setattr(module, name, RoutedCheckpoint(function, state, readers))


def unbind_checkpoints(model: nn.Module) -> None:
    """Give a model its own checkpoint functions back."""
    for module, name, function in _checkpoint_functions(model):
        if isinstance(function, RoutedCheckpoint):
            setattr(module, name, function.function)


def _run_bound(
    state: RoutingState,
    routing: Routing | None,
    gates: list[Gate],
    block: Callable[..., Any],
    embeds: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    coefficients, args = args[: len(gates)], args[len(gates) :]
    if torch.compiler.is_compiling():
        # A graph recomputes what it has traced, routing included; binding would break the graph.
        return block(*args, **kwargs)
    if routing is not None and embeds is not None:
        routing = replace(routing, embeds=embeds)
    memory: Memory = {
        (("coefficients", gate), mode): given
        for gate, given in zip(gates, coefficients, strict=True)
        for mode in (True, False)
    }
    with state.bound(routing, memory):
        return block(*args, **kwargs)


def _checkpoint_functions(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Find what checkpoints blocks: transformers' functions, and those of torch's
    `CheckpointWrapper`, which FSDP and accelerate apply.

    Returns:
        (module, attribute, function) of each.
    """
    found = []
    for module in model.modules():
        wrapper = type(module).__name__ == "CheckpointWrapper"
        name = "checkpoint_fn" if wrapper else "_gradient_checkpointing_func"
        if name in vars(module):
            found.append((module, name, vars(module)[name]))
    return found
