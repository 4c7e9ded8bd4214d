"""Ties the routing to the base model: its forward, its `generate`, its checkpointed blocks.

PEFT reaches the base model by several roads (with and without a task type, through the tuner or
past it), so the keyword is taken off where all of them meet: at the base model itself. What is
installed here hangs on this one model object and is taken off again by `remove`.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_ilora.checks import check_fits, check_rows, checked_embeds
from peft_ilora.config import ILoRAConfig
from peft_ilora.errors import missing_routing_error
from peft_ilora.gate import Gate, HardGate
from peft_ilora.prompt import continues_a_sequence, prompt_embeds
from peft_ilora.routing import Owner, Routing, RoutingState, for_forward

SharedGates = Callable[[], dict[str, Gate | HardGate]]
KEYWORD = "routing_embeds"
GENERATE = "generate"
_INPUTS = (
    "input_ids",
    "inputs_embeds",
    "decoder_input_ids",
    "decoder_inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
)


class RoutingHooks:
    """What routes one base model.

    Args:
        model: The base model.
        state: Its routing.
        routed: The configurations of the adapters that read a routing now, by name; none where they
            are disabled.
        check_readable: Raises where a routing would be ignored that the caller means to be read.
        shared_gates: Those of the adapters in `routed` that have one for all layers.
    """

    def __init__(
        self,
        model: nn.Module,
        state: RoutingState,
        routed: Callable[[], dict[str, ILoRAConfig]],
        check_readable: Callable[[Any], None],
        shared_gates: SharedGates,
    ) -> None:
        self.model = model
        self.state = state
        self.routed = routed
        self.check_readable = check_readable
        self.shared_gates = shared_gates
        self.own_generate = vars(model).get(GENERATE)
        self.handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.before_forward, prepend=True, with_kwargs=True),
            model.register_forward_hook(self.after_forward, always_call=True),
        ]
        if hasattr(model, "generate"):
            vars(model)[GENERATE] = RoutedGenerate(self)

    def remove(self) -> None:
        """Take everything off the base model again."""
        for handle in self.handles:
            handle.remove()
        vars(self.model).pop(GENERATE, None)
        if self.own_generate is not None:
            vars(self.model)[GENERATE] = self.own_generate
        for module, name, function in _checkpoint_functions(self.model):
            if isinstance(function, RoutedCheckpoint):
                setattr(module, name, function.function)

    def before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bind the forward's routing: its keyword, what is already in force, or the prompt's."""
        self.state.drop_aborted_forward()
        kwargs = dict(kwargs)
        configs = self.routed()
        routing = self.routing_for(kwargs.pop(KEYWORD, None), "forward", configs)
        if routing is None and _reads_prompt(configs):
            routing = self.prompt_routing(model, args, kwargs, "forward")
        if routing is not None and configs:
            if routing.owner != "forward":  # bound before, for adapters that may have changed
                check_fits(routing.embeds, configs)
            inputs = _model_inputs(args, kwargs)
            if not any(name in kwargs for name in _INPUTS):
                rows = routing.batch  # forward(mask, x): the batch need not come first
                inputs.sort(key=lambda tensor: tensor.shape[0] != rows)
            check_rows(routing, inputs[0].shape[0] if inputs else routing.batch)
            routing = for_forward(routing, inputs, model.training, configs)
        for name, config in configs.items():
            if routing is None and config.missing_routing == "error":
                raise missing_routing_error(name)
        if torch.is_grad_enabled():
            self.bind_checkpoints(model)
        self.state.open_forward(routing)
        return args, kwargs

    def after_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        """Unbind; also after an exception."""
        self.state.close_forward()

    def routing_for(
        self, routing_embeds: Any, owner: Owner, configs: dict[str, ILoRAConfig]
    ) -> Routing | None:
        """The routing of a call with this keyword; None where no adapter, of these, would read it.

        Raises:
            ValueError: A keyword inside `model.routing`, where two routings would compete, or one
                that the adapters do not read.
        """
        current = self.state.current
        if routing_embeds is None:
            return current
        if current is not None:
            raise ValueError(
                "routing_embeds was passed inside `with model.routing(...)`: use one of the two"
            )
        if not configs:
            self.check_readable(routing_embeds)
            return None
        return Routing(checked_embeds(routing_embeds, configs), owner, memo={})

    def prompt_routing(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], owner: Owner
    ) -> Routing:
        """The routing that a call's own prompt gives.

        Raises:
            ValueError: The call does not hold the whole prompt.
        """
        if owner == "forward":  # where a mask or labels may be positional
            kwargs = inspect.signature(model.forward).bind_partial(*args).arguments | kwargs
        if continues_a_sequence(kwargs):
            raise ValueError(
                "gate_input='prompt' needs the whole prompt, but this forward continues a sequence "
                "(past_key_values): run inside "
                "`with model.routing(model.prompt_embeds(input_ids, attention_mask)):`"
            )
        tasks = {config.task_type for config in self.routed().values()}
        labels = kwargs.get("labels") if tasks <= {None, "CAUSAL_LM"} else None  # else: of inputs
        if owner == "forward" and model.training and labels is None and "CAUSAL_LM" in tasks:
            raise ValueError(
                "gate_input='prompt' cannot tell the prompt from the answer in a training forward "
                "without labels (label_smoothing_factor and compute_loss_func take them off): "
                "pass labels, or routing_embeds=model.prompt_embeds(input_ids, mask, labels)"
            )
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        embeds = prompt_embeds(
            model,
            ids,
            kwargs.get("inputs_embeds"),
            kwargs.get("attention_mask"),
            labels,
        )
        return Routing(embeds, owner, memo={})

    def bind_checkpoints(self, model: nn.Module) -> None:
        """Let every checkpointed block of a model, or of a replica, remember its routing."""
        for module, name, function in _checkpoint_functions(model):
            if not isinstance(function, RoutedCheckpoint):
                setattr(module, name, RoutedCheckpoint(function, self.state, self.shared_gates))


def is_routed(model: nn.Module) -> bool:
    """Whether a model, or one inside of it, has its hooks already."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(isinstance(getattr(hook, "__self__", None), RoutingHooks) for hook in hooks)


class RoutedGenerate:
    """`model.generate` that takes `routing_embeds` off before transformers refuses the keyword."""

    def __init__(self, hooks: RoutingHooks) -> None:
        self.hooks = hooks

    def __call__(self, *args: Any, routing_embeds: Any = None, **kwargs: Any) -> Any:
        """Generate under one routing; rows that transformers repeats share their routing row."""
        state, model = self.hooks.state, self.hooks.model
        generate = self.hooks.own_generate or partial(type(model).generate, model)  # type: ignore[attr-defined]
        state.drop_aborted_forward()
        configs = self.hooks.routed()
        routing = self.hooks.routing_for(routing_embeds, "generate", configs)
        if routing is None and _reads_prompt(configs):
            routing = self.hooks.prompt_routing(model, args, kwargs, "generate")
        if routing is None:
            return generate(*args, **kwargs)
        prompts = [kwargs.get("inputs"), *_model_inputs(args, kwargs)]
        rows = next((t.shape[0] for t in prompts if isinstance(t, Tensor)), routing.batch)
        check_rows(Routing(routing.embeds, "forward"), rows)
        with state.bound(Routing(routing.embeds, "generate", memo={})):
            return generate(*args, **kwargs)


class RoutedCheckpoint:
    """A checkpoint function whose recomputation sees the routing of the forward it belongs to.

    The embeddings, and what shared gates make of them, travel as arguments: so they receive
    gradients under reentrant checkpointing too, and a shared gate is evaluated outside of the
    blocks, once. Recomputation may run in a thread of autograd's.
    """

    def __init__(
        self, function: Callable[..., Any], state: RoutingState, shared_gates: SharedGates
    ) -> None:
        self.function = function
        self.state = state
        self.shared_gates = shared_gates

    def __call__(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint `block(*args)`."""
        routing = self.state.current
        gates = {} if routing is None else self.shared_gates()
        embeds = None if routing is None else routing.embeds
        weights = [routing.expert_weights(g, n) for n, g in gates.items()] if routing else []
        shares = not torch.compiler.is_compiling() and self.state.offers is not None
        run = partial(
            _run_bound, self.state, routing, shares, [id(g) for g in gates.values()], block
        )
        return self.function(run, embeds, *weights, *args, **kwargs)


def _run_bound(
    state: RoutingState,
    routing: Routing | None,
    shares: bool,
    gates: list[int],
    block: Callable[..., Any],
    embeds: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    weights, args = args[: len(gates)], args[len(gates) :]
    if torch.compiler.is_compiling():
        # A graph recomputes what it has traced, routing included; binding would break the graph.
        return block(*args, **kwargs)
    if routing is not None and embeds is not None:
        handed = dict(zip(gates, weights, strict=True))
        routing = replace(routing, embeds=embeds, weights=handed, memo={})
    with state.bound(routing, shares):
        return block(*args, **kwargs)


def _checkpoint_functions(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """(module, attribute, function) of what checkpoints blocks: transformers' way, and torch's
    `CheckpointWrapper`, which FSDP and accelerate apply.
    """
    found = []
    for module in model.modules():
        wrapper = type(module).__name__ == "CheckpointWrapper"
        name = "checkpoint_fn" if wrapper else "_gradient_checkpointing_func"
        if name in vars(module):
            found.append((module, name, vars(module)[name]))
    return found


def _reads_prompt(configs: dict[str, ILoRAConfig]) -> bool:
    return bool(configs) and all(config.gate_input == "prompt" for config in configs.values())


def _model_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors of a call whose first dimension is the batch, the leading one first."""
    named = [kwargs[name] for name in _INPUTS if isinstance(kwargs.get(name), Tensor)]
    found = [arg for arg in args if isinstance(arg, Tensor)] + named
    if not found:
        found = [value for value in kwargs.values() if isinstance(value, Tensor)][:1]
    return [tensor for tensor in found if tensor.dim() > 0]
