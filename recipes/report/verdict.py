"""Puts differences into sentences that say plainly whether the interval excludes zero."""

from collections.abc import Mapping
from typing import Any

from recipes.report.naming import GENERATED, Arms, arms_of, headline_key

Entry = Mapping[str, Any]


def headline_keys(results: Mapping[str, Any]) -> tuple[str, str]:
    """Metrics whose comparisons are put into words: of generated answers, and of ranks."""
    return GENERATED, headline_key(results)


def headlines(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each metric, the comparison of the best arm with its strongest rival.

    These are the arms with the highest and the second highest value, whichever they are.
    """
    found = []
    for key in headline_keys(results):
        ranked = _ranked(results, key)
        if len(ranked) > 1:
            found += _between(results, key, ranked[0], ranked[1])
    return found


def differences(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparisons that a report puts into words, on both metrics.

    First come the headlines, then each pair of adapters, then each adapter against the strongest
    arm without a language model.
    """
    arms = arms_of(results)
    adapters = [name for name, arm in arms.items() if arm["is_adapter"]][::-1]
    pairs = [(one, other) for place, one in enumerate(adapters) for other in adapters[place + 1 :]]
    others = [name for name in _ranked(results, headline_key(results)) if name not in adapters]
    pairs += [(one, other) for one in adapters for other in others[:1]]
    found = headlines(results)
    for pair in pairs:
        for key in headline_keys(results):
            found += [e for e in _between(results, key, *pair) if e not in found]
    return found


def _ranked(results: Mapping[str, Any], key: str) -> list[str]:
    """Arms with a measured value of the metric, best first; among equals, the simpler one first."""
    values = {
        entry["method"]: entry["value"]
        for entry in results["metrics"]
        if entry["key"] == key and entry["value"] is not None and entry.get("interval") != "exact"
    }
    simple_first = [name for name in arms_of(results) if name in values]
    return sorted(simple_first, key=lambda name: -values[name])


def _between(results: Mapping[str, Any], key: str, one: str, other: str) -> list[dict[str, Any]]:
    """The comparison of two arms on a metric, as a list; empty if there is none."""
    return [
        entry
        for entry in results["comparisons"]
        if entry["key"] == key and {entry["method"], entry["baseline"]} == {one, other}
    ]


def verdict(entry: Entry, arms: Arms) -> str:
    """A comparison in words."""
    method, baseline = (arms[entry[side]]["title"] for side in ("method", "baseline"))
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
