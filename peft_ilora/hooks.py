"""Ties the routing to the base model: its forward, its `generate`, its checkpointed blocks.

PEFT reaches the base model by several roads (with and without a task type, through the tuner or
past it), so the keyword is taken off where all of them meet: at the base model itself. What is
installed here hangs on this one model object and is taken off again by `remove`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_ilora.routing import Routing, RoutingState, check_rows, for_forward

KEYWORD = "routing_embeds"
_CHECKPOINT = "_gradient_checkpointing_func"
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
        accept: Checks routing embeddings and returns them, or None where no adapter is enabled.
        check_missing: Raises where the active adapters need a routing.
    """

    def __init__(
        self,
        model: nn.Module,
        state: RoutingState,
        accept: Callable[[Any], Tensor | None],
        check_missing: Callable[[], None],
    ) -> None:
        self.model = model
        self.state = state
        self.accept = accept
        self.check_missing = check_missing
        self.handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.before_forward, prepend=True, with_kwargs=True),
            model.register_forward_hook(self.after_forward, always_call=True),
        ]
        if hasattr(model, "generate"):
            vars(model)["generate"] = RoutedGenerate(self)

    def remove(self) -> None:
        """Take everything off the base model again."""
        for handle in self.handles:
            handle.remove()
        vars(self.model).pop("generate", None)
        for module in self.model.modules():
            function = vars(module).get(_CHECKPOINT)
            if isinstance(function, RoutedCheckpoint):
                setattr(module, _CHECKPOINT, function.function)

    def before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bind the forward's routing: its keyword, or what is already in force."""
        self.state.drop_aborted_forward()
        kwargs = dict(kwargs)
        routing = self.routing_for(kwargs.pop(KEYWORD, None), "forward")
        inputs = _model_inputs(args, kwargs)
        if routing is not None:
            if inputs:
                check_rows(routing, inputs[0].shape[0])
            routing = for_forward(routing, frozenset(t.shape[1] for t in inputs if t.dim() > 1))
        else:
            self.check_missing()
        if model.training and torch.is_grad_enabled():
            self._bind_checkpoints()
        self.state.open_forward(routing)
        return args, kwargs

    def after_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        """Unbind; also after an exception."""
        self.state.close_forward()

    def routing_for(self, routing_embeds: Any, owner: str) -> Routing | None:
        """The routing of a call with this keyword.

        Raises:
            ValueError: A keyword inside `model.routing`, where two routings would compete.
        """
        current = self.state.current
        if routing_embeds is None:
            return current
        if current is not None:
            raise ValueError(
                "routing_embeds was passed inside `with model.routing(...)`: use one of the two"
            )
        embeds = self.accept(routing_embeds)
        return None if embeds is None else Routing(embeds, owner, scales={})  # type: ignore[arg-type]

    def _bind_checkpoints(self) -> None:
        for module in self.model.modules():
            function = vars(module).get(_CHECKPOINT)
            if function is not None and not isinstance(function, RoutedCheckpoint):
                setattr(module, _CHECKPOINT, RoutedCheckpoint(function, self.state))


class RoutedGenerate:
    """`model.generate` that takes `routing_embeds` off before transformers refuses the keyword."""

    def __init__(self, hooks: RoutingHooks) -> None:
        self.hooks = hooks

    def __call__(self, *args: Any, routing_embeds: Any = None, **kwargs: Any) -> Any:
        """Generate under one routing; rows that transformers repeats share their routing row."""
        state, model = self.hooks.state, self.hooks.model
        generate = partial(type(model).generate, model)  # type: ignore[attr-defined]
        state.drop_aborted_forward()
        routing = self.hooks.routing_for(routing_embeds, "generate")
        if routing is None:
            return generate(*args, **kwargs)
        prompts = [kwargs.get("inputs"), *_model_inputs(args, kwargs)]
        rows = next((t.shape[0] for t in prompts if isinstance(t, Tensor)), routing.batch)
        check_rows(Routing(routing.embeds, "forward"), rows)
        with state.bound(Routing(routing.embeds, "generate", scales={})):
            return generate(*args, **kwargs)


class RoutedCheckpoint:
    """A checkpoint function whose recomputation sees the routing of the forward it belongs to.

    The embeddings travel as an argument, so that they receive gradients under reentrant
    checkpointing too. Recomputation may run in a thread of autograd's.
    """

    def __init__(self, function: Callable[..., Any], state: RoutingState) -> None:
        self.function = function
        self.state = state

    def __call__(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint `block(*args)`."""
        routing = self.state.current
        if routing is None:
            return self.function(block, *args, **kwargs)
        run = partial(_run_bound, self.state, routing, block)
        return self.function(run, routing.embeds, *args, **kwargs)


def _run_bound(
    state: RoutingState, routing: Routing, block: Callable[..., Any], embeds: Tensor, *args: Any
) -> Any:
    with state.bound(Routing(embeds, routing.owner, routing.lengths)):
        return block(*args)


def _model_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors of a call whose first dimension is the batch, the leading one first."""
    named = [kwargs[name] for name in _INPUTS if isinstance(kwargs.get(name), Tensor)]
    found = [arg for arg in args if isinstance(arg, Tensor)] + named
    if not found:
        found = [value for value in kwargs.values() if isinstance(value, Tensor)][:1]
    return [tensor for tensor in found if tensor.dim() > 0]
