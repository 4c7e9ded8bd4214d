"""How methods and figures are written for a reader."""

from typing import Any

NAMES = {
    "random": "Random order",
    "popularity": "Popularity",
    "sasrec": "SASRec",
    "lora": "LoRA",
    "lora-user-slot": "LoRA + user slot",
    "ilora": "iLoRA",
}
"""Display names, in the order of tables and plots."""

MEANINGS = {
    "random": "candidates in random order; its expectation is exact",
    "popularity": "candidates ranked by how often they occur in the train interactions",
    "sasrec": "the sequential recommender alone, without a language model",
    "lora": "one low-rank adapter for all users",
    "lora-user-slot": "the same LoRA, with the user's representation in one more prompt slot: the "
    "control that gets the same information without a gate",
    "ilora": "instance-wise LoRA: a gate reads the user's representation and mixes experts of the "
    "same total rank",
}


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
