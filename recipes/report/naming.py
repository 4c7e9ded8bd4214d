"""Formats arms and figures for readers."""

import re
from collections.abc import Mapping
from typing import Any

NOTHING = "There is nothing to compare."
GENERATED = "hit_ratio@1/generation/total"
"""The metric of generated answers that a report shows first."""
Arms = Mapping[str, Mapping[str, Any]]


def arms_of(results: Mapping[str, Any]) -> Arms:
    """Name of each arm -> its entry in `results.json`, in the order of tables and plots."""
    return {arm["name"]: arm for arm in results["arms"]}


MARKUP = re.compile(r"[\\`*|\[\]]|(?<![^\W_])_|_(?![^\W_])")
"""What would be markup in Markdown. A single underscore within a word is none."""


def plain(words: str) -> str:
    """Words that a user chose, such as a name or a setting's value, as plain text in Markdown."""
    text = words.replace("&", "&amp;").replace("<", "&lt;")
    return MARKUP.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))


def in_markdown(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results whose name and titles of arms are plain text in Markdown."""
    arms = [{**arm, "title": plain(arm["title"])} for arm in results["arms"]]
    return {**results, "arms": arms, "name": plain(str(results["name"]))}


def headline_key(results: Mapping[str, Any]) -> str:
    """The ranking metric that a report shows first."""
    return f"hit_ratio@{results['evaluated']['headline']}/ranking"


def main_columns(results: Mapping[str, Any]) -> dict[str, str]:
    """The main figures of an arm: metric and heading."""
    k = results["evaluated"]["headline"]
    if any(entry["key"] == GENERATED for entry in results["metrics"]):
        return {
            GENERATED: "HitRatio@1 generated, of total",
            "valid_ratio/generation": "ValidRatio",
            headline_key(results): f"HitRatio@{k} ranked",
        }
    gain = {} if k == 1 else {f"ndcg@{k}/ranking": f"NDCG@{k}"}
    return {headline_key(results): f"HitRatio@{k}", **gain, "mrr/ranking": "MRR"}


def several_seeds(results: Mapping[str, Any]) -> bool:
    """Whether some figure is a mean over several seeds."""
    return any(len(entry.get("seeds", [])) > 1 for entry in results["metrics"])


def resampled(results: Mapping[str, Any]) -> str:
    """What intervals speak of: `users`, or `users and seeds` where an arm has several."""
    return "users and seeds" if several_seeds(results) else "users"


def interval(entry: Mapping[str, Any], sign: bool = False, digits: int = 3) -> str:
    """A figure with its interval, such as `0.123 [0.100, 0.145]`.

    An exact figure has no interval, and an undefined one becomes a dash.
    """
    if entry["value"] is None:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    text = f"{entry['value']:{form}}"
    if entry.get("interval") == "exact":
        return text
    mark = "†" if entry.get("degenerate") else ""
    return f"{text} [{entry['low']:{form}}, {entry['high']:{form}}]{mark}"


def per_seed(values: list[float | None], sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return ", ".join("–" if value is None else f"{value:{form}}" for value in values)
