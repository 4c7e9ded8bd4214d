"""A difference in a sentence that says plainly whether the interval excludes zero."""

from typing import Any

from recipes.report.naming import NAMES

HEADLINE_KEYS = ("hit_ratio@1/generation/total", "hit_ratio@1/ranking")
"""Metrics of the comparisons that are put into words."""
LLM_METHODS = ("ilora", "lora-user-slot", "lora")


def headlines(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons to read: iLoRA against LoRA first, by generated answers first.

    Adapters are compared with each other under both metrics, and with SASRec by ranking.
    """
    pairs = [
        (first, second)
        for baseline in ("lora", "lora-user-slot", "sasrec")
        for first, second in ((method, baseline) for method in LLM_METHODS)
    ]
    by_name = {(entry["method"], entry["baseline"], entry["key"]): entry for entry in comparisons}
    return [
        by_name[(*pair, key)] for pair in pairs for key in HEADLINE_KEYS if (*pair, key) in by_name
    ]


def verdict(entry: dict[str, Any]) -> str:
    """What a comparison shows."""
    method, baseline = NAMES[entry["method"]], NAMES[entry["baseline"]]
    label = entry["label"]
    if entry["value"] is None:
        return (
            f"{label}: {method} and {baseline} cannot be compared, no row counts for one of them."
        )
    if entry["degenerate"]:
        return (
            f"{label}: {method} minus {baseline} is {entry['value']:+.3f} in every resample, so "
            "the bootstrap says nothing about its uncertainty."
        )
    interval = (
        f"{label}: {method} minus {baseline} is {entry['value']:+.3f}, "
        f"{entry['confidence']:.0%} interval [{entry['low']:+.3f}, {entry['high']:+.3f}]"
    )
    if not entry["excludes_zero"]:
        return (
            f"{interval}. The interval **includes zero**: this run does not show a difference "
            f"between {method} and {baseline}."
        )
    better, worse = (method, baseline) if entry["value"] > 0 else (baseline, method)
    return f"{interval}. The interval **excludes zero**: on these rows {better} beats {worse}."
