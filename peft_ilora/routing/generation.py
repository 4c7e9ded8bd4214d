"""Routing under `generate`: which routing row each row of the model has at every moment.

transformers expands a batch in one place, `_expand_inputs_for_generation`, which is watched here. A
model may hand `generate` on to a model inside of it, so every module that generates is watched.
"""

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

from peft_ilora.config import ILoRAConfig
from peft_ilora.routing.binding import Owner, Routing, RoutingState, for_forward
from peft_ilora.routing.checks import (
    check_rows,
    continuous_batching_error,
    inner_rows_error,
    regrouping_error,
)
from peft_ilora.routing.families import DIRECT, GUIDED, REGROUPING, family
from peft_ilora.routing.inputs import model_inputs, prompt_rows
from peft_ilora.routing.prompt import prompt_routing, reads_prompt
from peft_ilora.routing.readers import Readers


class Hooks(Protocol):
    """What is asked of the base model's hooks."""

    model: nn.Module
    state: RoutingState
    readers: Readers

    def routing_for(
        self, routing_embeds: Any, owner: Owner, configs: dict[str, ILoRAConfig]
    ) -> Routing | None:
        """Return the routing of a call with this keyword."""
        ...

    def with_images(
        self, routing: Routing, kwargs: dict[str, Any], configs: dict[str, ILoRAConfig]
    ) -> Routing:
        """Return the routing with the rows of the call's images."""
        ...


class Watched:
    """A method of one module, with something done around its calls.

    Args:
        module: The module.
        name: The method.
        hooks: The base model's hooks.
    """

    names: ClassVar[tuple[str, ...]]
    """Methods that the class stands in for."""

    def __init__(self, module: nn.Module, name: str, hooks: Hooks) -> None:
        self.module = module
        self.name = name
        self.hooks = hooks
        self.state = hooks.state
        self.kept = vars(module).get(name)
        vars(module)[name] = self

    @property
    def own(self) -> Any:
        """The method as it is without us."""
        if self.kept is not None:
            return self.kept
        method = getattr(type(self.module), self.name, None)
        if method is None:  # torch.compile's wrapper asks the module inside of it
            return getattr(self.module._orig_mod, self.name)
        return partial(method, self.module)

    def remove(self) -> None:
        """Give the module its method back."""
        del vars(self.module)[self.name]
        if self.kept is not None:
            vars(self.module)[self.name] = self.kept


class RoutedGenerate(Watched):
    """The base model's `generate`, which takes `routing_embeds` off before transformers sees it."""

    names = ("generate",)

    def __call__(self, *args: Any, routing_embeds: Any = None, **kwargs: Any) -> Any:
        """Generate under one routing; rows that transformers repeats share their routing row."""
        state, model, hooks = self.state, self.module, self.hooks
        state.drop_aborted_forward()
        configs = hooks.readers.reading()
        if routing_embeds is None and configs and state.generating is not None:
            return _generate_inside(self, args, kwargs)  # as its own assistant
        routing = hooks.routing_for(routing_embeds, "generate", configs)
        if routing is None and reads_prompt(configs):
            routing = prompt_routing(model, args, kwargs, "generate", configs)
        if routing is None:
            return self.own(*args, **kwargs)
        name = family(model)
        if routing.batch > 1 and name in REGROUPING:
            raise regrouping_error(name)
        rows = prompt_rows(model, args, kwargs)
        check_rows(Routing(routing.embeds, "forward"), routing.batch if rows is None else rows)
        begun = Routing(
            routing.embeds,
            "generate",
            guided=name in GUIDED,
            direct=name in DIRECT,
            sole=routing.batch == 1,
        )
        ids = kwargs.get("inputs", args[0] if args else None)
        begun = hooks.with_images(begun, {"input_ids": ids} | kwargs, configs)
        with state.bound(begun, memory={}):
            return self.own(*args, **kwargs)


class InnerGenerate(Watched):
    """`generate` of a model inside of the base model, which may hand its own on to it."""

    names = ("generate",)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate under the routing in force."""
        return _generate_inside(self, args, kwargs)


class Expansion(Watched):
    """What repeats rows for beams and returned sequences."""

    names = ("_expand_inputs_for_generation",)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Repeat the rows, and let the routing know."""
        expanded = self.own(*args, **kwargs)
        self.state.expand(kwargs.get("expand_size", args[0] if args else 1))
        return expanded


class RefusedBatching(Watched):
    """Continuous batching: its worker thread joins the tokens of all requests in one row."""

    names = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")

    def __call__(self, *args: Any, routing_embeds: Any = None, **kwargs: Any) -> Any:
        """Run it where no request needs a routing of its own.

        Raises:
            ValueError: One does.
        """
        configs = self.hooks.readers.reading()
        given = routing_embeds is not None or self.state.current is not None
        needs = any(
            config.gate_input == "prompt" or config.missing_routing == "error"
            for config in configs.values()
        )
        if configs and (given or needs or self.state.context_elsewhere()):
            raise continuous_batching_error(self.name)
        if routing_embeds is not None:
            self.hooks.readers.check_readable(routing_embeds)
        return self.own(*args, **kwargs)


class InnerForward:
    """Tells the forwards of a model that `generate` was handed on to what their rows are.

    Args:
        module: The model inside of the base model.
        name: Its name there.
        hooks: The base model's hooks.
    """

    def __init__(self, module: nn.Module, name: str, hooks: Hooks) -> None:
        self.module = module
        self.name = name
        self.hooks = hooks
        self.state = hooks.state
        self.handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self.before, prepend=True, with_kwargs=True),
            module.register_forward_hook(self.after, always_call=True),
        ]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Bind the forward's routing, where it is not a part of the base model's own forward."""
        routing = self.state.generating
        configs = {} if routing is None else self.hooks.readers.reading()
        if routing is None or not configs:
            return
        inputs = model_inputs(args, kwargs)
        rows = prompt_rows(module, args, kwargs)
        routing = fitting(routing, routing.rows if rows is None else rows)
        routing = for_forward(routing, inputs, module.training, configs)
        self.state.open_forward(self.hooks.with_images(routing, kwargs, configs), self.name)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Unbind; also after an exception."""
        self.state.close_forward(self.name)

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()


def watch_generation(hooks: Hooks) -> list[Watched | InnerForward]:
    """Watch the methods of a model, and of those inside of it, that generate."""
    model = hooks.model
    found: list[Watched | InnerForward] = []
    if hasattr(model, "generate"):
        found.append(RoutedGenerate(model, "generate", hooks))
    for name, module in model.named_modules():
        kinds: list[type[Watched]] = [RefusedBatching, Expansion, *WINDOWS]
        if module is not model and hasattr(type(module), Expansion.names[0]):
            kinds.append(InnerGenerate)
            found.append(InnerForward(module, name, hooks))
        for kind in kinds:
            methods = [method for method in kind.names if hasattr(type(module), method)]
            found += [kind(module, method, hooks) for method in methods]
    return found


def fitting(routing: Routing, rows: int) -> Routing:
    """Return the routing of a forward with so many rows.

    Raises:
        ValueError: They are not the rows that the routing has now.
    """
    if routing.sole:
        return replace(routing, times=rows, copies=1)
    if routing.guided and rows == 2 * routing.rows:
        return replace(routing, copies=2)
    check_rows(routing, rows)
    return routing


def _generate_inside(watched: Watched, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    state, module = watched.state, watched.module
    routing = state.current
    if routing is None or not watched.hooks.readers.reading():
        return watched.own(*args, **kwargs)
    rows = prompt_rows(module, args, kwargs)
    if not routing.sole and rows is not None and rows != routing.rows:
        if not (routing.direct and rows == routing.batch):
            raise inner_rows_error(type(module).__name__, routing, rows)
        routing = replace(routing, times=1)
    name = family(module)
    inner = replace(
        routing,
        owner="generate",
        lengths=(),
        guided=name in GUIDED,
        direct=name in DIRECT,
        detached=False,
        noise={},
    )
    with state.bound(inner, memory={}):
        return watched.own(*args, **kwargs)


class WindowRows(Watched):
    """Whisper's windows of a long recording, which hold the recordings that have not ended."""

    names = ("generate_with_fallback",)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Transcribe one window under the routing of its recordings."""
        routing = self.state.generating
        if routing is None or routing.sole or not {"batch_idx_map", "batch_size"} <= kwargs.keys():
            return self.own(*args, **kwargs)
        returned = len(kwargs["seek"]) // kwargs["batch_size"]
        rows = [row // returned for row in kwargs["batch_idx_map"]]
        window = replace(routing.of_rows(rows), sole=len(rows) == 1)
        with self.state.bound(window, memory={}):
            return self.own(*args, **kwargs)


class FallbackRows(Watched):
    """Whisper's rows of a window that are transcribed again, at another temperature."""

    names = ("_need_fallback",)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note whether one row is; after the last one, those rows are left."""
        answer = self.own(*args, **kwargs)
        frame, begun = self.state.stack[-1], self.state.begun
        if begun is not None and frame.memory is not None:
            again = frame.memory.setdefault(("fallback",), [])
            again.append(answer[0])
            if len(again) == begun.batch:
                left = [row for row, needed in enumerate(again) if needed]
                self.state.restart(begun.of_rows(left) if left else begun)
        return answer


WINDOWS: tuple[type[Watched], ...] = (WindowRows, FallbackRows)
