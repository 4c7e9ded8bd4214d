"""Undoing what was done to a model."""

from typing import Any

from torch import nn


class Snapshot:
    """The modules of a model as they are: parts, attributes, hooks, and what is trained.

    Parameters are kept as objects, not by their values.

    Args:
        model: The model.
        others: Objects beside it that would be changed too.
    """

    def __init__(self, model: nn.Module, *others: object) -> None:
        self.attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.containers: list[tuple[Any, Any]] = []
        configs = {id(other): other for other in others}
        for module in model.modules():
            self._keep(vars(module))
            config = vars(module).get("config")  # transformers'; replicated layers change its count
            if hasattr(config, "__dict__"):
                configs[id(config)] = config
        for config in configs.values():
            self._keep(vars(config))
        self.trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def _keep(self, attributes: dict[str, Any]) -> None:
        self.attributes.append((attributes, dict(attributes)))
        for value in attributes.values():
            if isinstance(value, (dict, list, set)):
                self.containers.append((value, value.copy()))

    def restore(self) -> None:
        """Make the modules what they were."""
        for attributes, before in self.attributes:
            attributes.clear()
            attributes.update(before)
        for container, before in self.containers:
            container.clear()
            if isinstance(container, list):
                container.extend(before)
            else:
                container.update(before)
        for parameter, requires_grad in self.trained:
            parameter.requires_grad_(requires_grad)
