"""The pytest plugin that runs PEFT's tests with another class in place of LoraConfig."""

import contextlib
import functools
import importlib
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import peft
import pytest
import torch
from peft import PeftConfig, PeftModel
from torch import Tensor

from peft_ilora import ILoRAConfig, ILoRAModel
from peft_matrix.checkout import PACKAGE
from peft_matrix.verdict import CONTROL, ROUTED, UNIFORM

_LORAS = {"r": 8, "lora_alpha": 8}
"""The defaults of LoRA, for which the tolerances of the tests are made."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("matrix of PEFT's tests")
    group.addoption("--matrix-adapter", choices=(CONTROL, UNIFORM, ROUTED), required=True)
    group.addoption("--matrix-record", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    # PEFT compiles its model card's template at every save, longer than all the rest of it takes.
    jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)
    _stand_in_for_diffusers()
    adapter = config.getoption("--matrix-adapter")
    if adapter != CONTROL:
        peft.LoraConfig = ILoRAConfig
        even = {"missing_routing": "uniform"} if adapter == UNIFORM else {}
        _set_defaults(_LORAS | even)
    if adapter == ROUTED:
        _bind_a_routing_around_every_call()
    sys.path.insert(0, str(config.rootpath))
    utilities = importlib.import_module(f"{PACKAGE}.testing_utils")
    utilities.hub_online_once = lambda _: contextlib.nullcontext()  # it turns the network on
    config.pluginmanager.register(Matrix(config.getoption("--matrix-record")), "matrix")


# -------------------------------------------------------------------- what stands in for what


def _stand_in_for_diffusers() -> None:
    """PEFT's common tests import a class of diffusers, which none of the tests run here uses."""
    with contextlib.suppress(ImportError):
        import diffusers  # noqa: F401

        return
    module = types.ModuleType("diffusers")
    module.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    sys.modules["diffusers"] = module


def _set_defaults(defaults: dict[str, Any]) -> None:
    original = ILoRAConfig.__init__

    @functools.wraps(original)
    def init(self: ILoRAConfig, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **defaults | kwargs)

    ILoRAConfig.__init__ = init


def _bind_a_routing_around_every_call() -> None:
    """Give every row of every call the same instance, and merge that instance.

    With one instance for all rows, a test that compares merged with unmerged outputs keeps its
    meaning.
    """
    for cls in (PeftModel, *PeftModel.__subclasses__()):
        for name in ("forward", "generate"):
            if name in vars(cls):
                setattr(cls, name, _bound(vars(cls)[name]))
    for name in ("merge_adapter", "merge_and_unload"):
        setattr(ILoRAModel, name, _with_the_instance(getattr(ILoRAModel, name)))


def _bound(call: Any) -> Any:
    @functools.wraps(call)
    def bound(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        first = next(tensors, None)
        tuner = self.base_model
        free = isinstance(tuner, ILoRAModel) and tuner.routing_state.current is None
        if first is None or not free or not tuner.active_adapters:
            return call(self, *args, **kwargs)
        embeds = _instance(tuner).expand(len(first), -1)
        with tuner.routing(embeds):
            return call(self, *args, **kwargs)

    return bound


def _with_the_instance(merge: Any) -> Any:
    @functools.wraps(merge)
    def merged(self: ILoRAModel, *args: Any, **kwargs: Any) -> Any:
        return merge(self, *args, **{"routing_embeds": _instance(self), **kwargs})

    return merged


def _instance(tuner: ILoRAModel) -> Tensor:
    """[1, routing_dim]"""
    width = next(iter(tuner.peft_config.values())).routing_dim
    values = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    return values.to(next(tuner.parameters()).device)


# -------------------------------------------------------------------- what is run, what came out


class Matrix:
    """Selects the tests of LoRA and records how each ended."""

    def __init__(self, record: Path) -> None:
        self.record = record
        self.outcomes: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        others = [item for item in items if not _is_of_lora(item)]
        config.hook.pytest_deselected(items=others)
        left_out = set(others)
        items[:] = [item for item in items if item not in left_out]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[_name(item)] = _outcome(call, report)
        return report

    def pytest_sessionfinish(self) -> None:
        self.record.write_text(json.dumps(self.outcomes, indent=1), encoding="utf-8")


def _name(item: pytest.Item) -> str:
    """The same whichever class is in place: `file.py::Class::function[parameters]`."""
    return item.nodeid.removeprefix(f"{PACKAGE}/").replace("ILoRAConfig", "LoraConfig")


def _is_of_lora(item: pytest.Item) -> bool:
    lora = peft.LoraConfig
    configs = list(_configs(_parameters(item)))
    if configs:
        return any(found is lora or type(found) is lora for found in configs)
    return bool(re.search(r"\bLoraConfig\b", inspect.getsource(item.function)))


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _configs(value: Any) -> Iterator[Any]:
    """Every PEFT configuration, and class of them, among the parameters of a test."""
    if isinstance(value, PeftConfig) or (isinstance(value, type) and issubclass(value, PeftConfig)):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _configs(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _configs(entry)


def _outcome(call: pytest.CallInfo[None], report: Any) -> dict[str, Any]:
    error = call.excinfo
    found: dict[str, Any] = {"outcome": report.outcome}
    if error is not None:
        found["error"] = error.typename
        found["message"] = str(error.value)
        found["where"] = [f"{Path(e.path).name}:{e.lineno + 1}" for e in error.traceback[-4:]]
    return found
