"""The settings of an arm: its own values, else shared ones, checked against their types."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from recipes.type_errors import worded

Config = TypeVar("Config")


def checked(
    config: type[Config],
    owner: str,
    shared: Mapping[str, Any],
    given: Mapping[str, Any],
    known: Iterable[str],
) -> Config:
    """An instance of `config` with an arm's settings.

    Args:
        config: The dataclass of the settings.
        owner: Names the arm's method in error messages, such as `method lora`.
        shared: Values of the settings that the arm does not give.
        given: The arm's own values.
        known: Names of the settings that an arm may give.

    Raises:
        ValueError: A name is unknown, or a value has the wrong type.
    """
    refuse_unknown(owner, given, known)
    for name, value in given.items():
        if value is None:  # which the parser would let pass
            raise ValueError(f"{owner}: {name} has no value")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config)
    try:
        parsed = parser.parse_object({**shared, **given})
    except ArgumentError as error:
        raise ValueError(f"{owner}: {worded(error.message)}") from error
    return config(**vars(parsed))


def refuse_unknown(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse given settings whose names are not in `known` (ValueError)."""
    names = sorted(known)
    for name in given:
        if name not in names:
            raise ValueError(f"{owner} has no setting {name!r}; it has {', '.join(names)}")


def positive_int(owner: str, name: str, value: Any) -> int:
    """The value of a setting that counts something.

    Raises:
        ValueError: It is not a positive int.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name}={value!r} must be a positive int")
    return value
