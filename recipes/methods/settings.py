"""The settings of an arm: given values over shared ones, checked by their types."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

Config = TypeVar("Config")


def checked(
    config: type[Config],
    owner: str,
    shared: Mapping[str, Any],
    given: Mapping[str, Any],
    known: Iterable[str],
) -> Config:
    """A dataclass of an arm's settings.

    Args:
        config: The dataclass.
        owner: Names the arm in errors: `method lora`.
        shared: Values that hold where the arm gives none.
        given: The arm's own.
        known: Names that an arm may give.

    Raises:
        ValueError: An unknown name, or a value of the wrong type.
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
        raise ValueError(f"{owner}: {error.message}") from error
    return config(**vars(parsed))


def refuse_unknown(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse names of settings that an arm does not have (ValueError)."""
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
