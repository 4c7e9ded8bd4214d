"""Binds a routing around every forward, and every `generate`, of the base model.

PEFT reaches the base model in several ways (with and without a task type, through the tuner or past
it), so the keyword `routing_embeds` is taken off where all of them meet: at the base model itself.
What is installed here hangs on this one model object, and `remove` takes it off again.
"""

import inspect
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from peft_ilora.config import ILoRAConfig
from peft_ilora.errors import lost_routing_error, missing_routing_error
from peft_ilora.routing.binding import KEYWORD, Owner, Routing, RoutingState, for_forward
from peft_ilora.routing.checkpointing import bind_checkpoints, unbind_checkpoints
from peft_ilora.routing.checks import (
    OTHER_THREAD,
    check_fits,
    check_has_values,
    checked_embeds,
)
from peft_ilora.routing.families import codebooks
from peft_ilora.routing.generation import fitting, watch_generation
from peft_ilora.routing.images import has_images, image_rows, sees_images
from peft_ilora.routing.inputs import INPUTS, model_inputs
from peft_ilora.routing.prompt import prompt_routing, reads_prompt
from peft_ilora.routing.readers import Readers


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
        self.watched = watch_generation(self)
        self.marked: list[ILoRAConfig] = []
        """Configurations of the adapters whose layers have been asked whether they see images."""
        self.some_see_images = False

    def remove(self) -> None:
        """Take everything off the base model again."""
        for handle in self.handles:
            handle.remove()
        for watched in self.watched:
            watched.remove()
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
        if routing is None:
            self._check_may_be_missing(configs)
        elif configs:
            routing = self._checked_for_forward(routing, args, kwargs, configs)
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
            ValueError: The routing of another task; a keyword inside `model.routing`, where two
                routings would compete; one that the adapters do not read.
        """
        if self.state.of_another_task():
            raise ValueError(
                "model.routing(...) is open in another task (or asynchronous call) of this thread, "
                "whose routing this one would get: pass routing_embeds=z to each call, or let no "
                "other task run inside of the block"
            )
        current = self.state.current
        if routing_embeds is None:
            return current
        if current is not None:
            raise ValueError(
                "routing_embeds was passed inside `with model.routing(...)`, or inside a generate "
                "that has its own: use one of the two"
            )
        if not configs:
            self.readers.check_readable(routing_embeds)
            return None
        check_has_values(routing_embeds, self.model)
        return Routing(checked_embeds(routing_embeds, configs), owner)

    def with_images(
        self, routing: Routing, kwargs: dict[str, Any], configs: dict[str, ILoRAConfig]
    ) -> Routing:
        """Return the routing with the rows of a call's images.

        Args:
            routing: The call's routing.
            kwargs: The call's arguments by name.
            configs: Configurations of the adapters that read it.

        Raises:
            ValueError: Adapted layers see images, and nobody can tell whose they are.
        """
        if routing.sole or not has_images(self.model, kwargs):
            return routing
        known = list(configs.values())
        if list(map(id, known)) != list(map(id, self.marked)):
            self.marked, self.some_see_images = known, self._mark_layers()
        if not self.some_see_images:
            return routing
        return replace(routing, images=image_rows(self.model, kwargs))

    def _mark_layers(self) -> bool:
        """Tell each layer whether it sees images; return whether one does."""
        found = False
        for name, module in self.model.named_modules():
            for update in getattr(module, "lora_variant", {}).values():
                update.of_images = sees_images(self.model, name)
                found = found or update.of_images
        return found

    def _check_may_be_missing(self, configs: dict[str, ILoRAConfig]) -> None:
        elsewhere = not torch.compiler.is_compiling() and self.state.context_elsewhere()
        for name, config in configs.items():
            if config.missing_routing == "error":
                raise missing_routing_error(name)
            if self.state.runs_again():
                raise lost_routing_error()
        if configs and elsewhere:
            warnings.warn(OTHER_THREAD, RuntimeWarning, stacklevel=2)

    def _checked_for_forward(
        self,
        routing: Routing,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        configs: dict[str, ILoRAConfig],
    ) -> Routing:
        if routing.owner != "forward":  # bound before, for adapters that may have changed
            check_fits(routing.embeds, configs)
        inputs = model_inputs(args, kwargs)
        if not any(name in kwargs for name in INPUTS):
            rows = routing.rows  # forward(mask, x): the batch need not come first
            inputs.sort(key=lambda tensor: tensor.shape[0] != rows)
        rows = inputs[0].shape[0] // codebooks(self.model, kwargs) if inputs else routing.rows
        routing = fitting(routing, rows)
        routing = for_forward(routing, inputs, self.model.training, configs)
        if args and has_images(self.model, kwargs):
            kwargs = inspect.signature(self.model.forward).bind_partial(*args).arguments | kwargs
        return self.with_images(routing, kwargs, configs)


def is_routed(model: nn.Module) -> bool:
    """Whether a model, or one inside of it, has its hooks already."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(isinstance(getattr(hook, "__self__", None), RoutingHooks) for hook in hooks)
