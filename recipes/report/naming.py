"""Formats arms and figures for readers."""

from collections.abc import Mapping
from typing import Any

NOTHING = "There is nothing to compare."
MAIN_COLUMNS = {
    "hit_ratio@1/generation/total": "HitRatio@1 generated, of total",
    "valid_ratio/generation": "ValidRatio",
    "hit_ratio@1/ranking": "HitRatio@1 ranked",
}
"""The main figures of an arm: metric and heading."""
Arms = Mapping[str, Mapping[str, Any]]


def arms_of(results: Mapping[str, Any]) -> Arms:
    """Name of each arm -> its entry in `results.json`, in the order of tables and plots."""
    return {arm["name"]: arm for arm in results["arms"]}


def interval(entry: dict[str, Any], sign: bool = False) -> str:
    """A figure with its interval, such as `0.123 [0.100, 0.145]`.

    An exact figure has no interval, and an undefined one becomes a dash.
    """
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
