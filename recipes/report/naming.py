"""How arms and figures are written for a reader."""

from collections.abc import Mapping
from typing import Any

Arms = Mapping[str, Mapping[str, Any]]


def arms_of(results: Mapping[str, Any]) -> Arms:
    """What `results.json` says of each arm, by name, in the order of tables and plots."""
    return {arm["name"]: arm for arm in results["arms"]}


def interval(entry: dict[str, Any], sign: bool = False) -> str:
    """`0.123 [0.100, 0.145]`; a dash where the ratio is undefined; no interval where exact."""
    if entry["value"] is None:
        return "–"
    form = "+.3f" if sign else ".3f"
    text = f"{entry['value']:{form}}"
    if entry.get("interval") == "exact":
        return text
    mark = "†" if entry.get("degenerate") else ""
    return f"{text} [{entry['low']:{form}}, {entry['high']:{form}}]{mark}"


def per_seed(values: list[float | None], sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return ", ".join("–" if value is None else f"{value:{form}}" for value in values)
