"""Binds a routing around every forward, and every `generate`, of the base model.

PEFT reaches the base model in several ways (with and without a task type, through the tuner or past
it), so the keyword `routing_embeds` is taken off where all of them meet: at the base model itself.
What is installed here hangs on this one model object, and `remove` takes it off again.
"""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_ilora.config import ILoRAConfig
from peft_ilora.errors import missing_routing_error
from peft_ilora.routing.binding import KEYWORD, Owner, Routing, RoutingState, for_forward
from peft_ilora.routing.checkpointing import bind_checkpoints, unbind_checkpoints
from peft_ilora.routing.checks import check_fits, check_rows, checked_embeds
from peft_ilora.routing.prompt import prompt_routing, reads_prompt
from peft_ilora.routing.readers import Readers

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
    """Binds the routing of each forward of a model, and unbinds it again.

    Args:
        model: The base model.
        state: Its bindings.
        readers: Its adapters.
    """

    def __init__(self, model: nn.Module, state: RoutingState, readers: Readers) -> None:
        self.model = model
        self.state = state
        self.readers = readers
        self.handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.before_forward, prepend=True, with_kwargs=True),
            model.register_forward_hook(self.after_forward, always_call=True),
        ]
        self.own_generate = vars(model).get(GENERATE)
        if hasattr(model, GENERATE):
            vars(model)[GENERATE] = RoutedGenerate(self)

    def remove(self) -> None:
        """Take everything off the base model again."""
        for handle in self.handles:
            handle.remove()
        vars(self.model).pop(GENERATE, None)
        if self.own_generate is not None:
            vars(self.model)[GENERATE] = self.own_generate
        unbind_checkpoints(self.model)

    def before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bind the forward's routing: its keyword's, what is already in force, or the prompt's."""
        self.state.drop_aborted_forward()
        kwargs = dict(kwargs)
        configs = self.readers.reading()
        routing = self.routing_for(kwargs.pop(KEYWORD, None), "forward", configs)
        if routing is None and reads_prompt(configs):
            named = inspect.signature(model.forward).bind_partial(*args).arguments | kwargs
            routing = prompt_routing(model, args, named, "forward", configs)
        if routing is not None and configs:
            routing = _checked_for_forward(routing, model, args, kwargs, configs)
        for name, config in configs.items():
            if routing is None and config.missing_routing == "error":
                raise missing_routing_error(name)
        if torch.is_grad_enabled():
            bind_checkpoints(model, self.state, self.readers)
        self.state.open_forward(routing)
        return args, kwargs

    def after_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        """Unbind; also after an exception."""
        self.state.close_forward()

    def routing_for(
        self, routing_embeds: Any, owner: Owner, configs: dict[str, ILoRAConfig]
    ) -> Routing | None:
        """Return the routing of a call with this keyword; None where none of `configs` reads one.

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
            self.readers.check_readable(routing_embeds)
            return None
        return Routing(checked_embeds(routing_embeds, configs), owner)


class RoutedGenerate:
    """`model.generate` that takes `routing_embeds` off before transformers refuses the keyword.

    Args:
        hooks: The hooks of the model.
    """

    def __init__(self, hooks: RoutingHooks) -> None:
        self.hooks = hooks

    def __call__(self, *args: Any, routing_embeds: Any = None, **kwargs: Any) -> Any:
        """Generate under one routing; rows that transformers repeats share their routing row."""
        state, model = self.hooks.state, self.hooks.model
        generate = self.hooks.own_generate or partial(type(model).generate, model)  # type: ignore[attr-defined]
        state.drop_aborted_forward()
        configs = self.hooks.readers.reading()
        routing = self.hooks.routing_for(routing_embeds, "generate", configs)
        if routing is None and reads_prompt(configs):
            routing = prompt_routing(model, args, kwargs, "generate", configs)
        if routing is None:
            return generate(*args, **kwargs)
        prompts = [kwargs.get("inputs"), *model_inputs(args, kwargs)]
        rows = next((t.shape[0] for t in prompts if isinstance(t, Tensor)), routing.batch)
        check_rows(Routing(routing.embeds, "forward"), rows)
        with state.bound(Routing(routing.embeds, "generate"), memory={}):
            return generate(*args, **kwargs)


def is_routed(model: nn.Module) -> bool:
    """Whether a model, or one inside of it, has its hooks already."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(isinstance(getattr(hook, "__self__", None), RoutingHooks) for hook in hooks)


def model_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a call whose first dimension is the batch, the leading one first."""
    named = [kwargs[name] for name in _INPUTS if isinstance(kwargs.get(name), Tensor)]
    found = [arg for arg in args if isinstance(arg, Tensor)] + named
    if not found:
        found = [value for value in kwargs.values() if isinstance(value, Tensor)][:1]
    return [tensor for tensor in found if tensor.dim() > 0]


def _checked_for_forward(
    routing: Routing,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    configs: dict[str, ILoRAConfig],
) -> Routing:
    if routing.owner != "forward":  # bound before, for adapters that may have changed
        check_fits(routing.embeds, configs)
    inputs = model_inputs(args, kwargs)
    if not any(name in kwargs for name in _INPUTS):
        rows = routing.batch  # forward(mask, x): the batch need not come first
        inputs.sort(key=lambda tensor: tensor.shape[0] != rows)
    check_rows(routing, inputs[0].shape[0] if inputs else routing.batch)
    return for_forward(routing, inputs, model.training, configs)
