"""What was tried for arms whose settings were chosen on validation, and what was chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.report.naming import Arms, plain
from recipes.report.tables import markdown_table


def tuning_section(
    tuning: Mapping[str, Sequence[Mapping[str, Any]]], arms: Arms, validate_rows: int
) -> str:
    """A table of all trials, a column a seed; empty if nothing was tuned.

    Args:
        tuning: Name of a tuned arm -> for each seed `seed`, `trials` and `chosen`.
        arms: Entries of `results.json`, by name.
        validate_rows: How many rows of validation were ranked at most.
    """
    if not tuning:
        return ""
    seeds = sorted({one["seed"] for own in tuning.values() for one in own})
    lines = []
    for name, own in tuning.items():
        by_seed = {one["seed"]: one for one in own}
        for place, trial in enumerate(own[0]["trials"]):
            words = ", ".join(f"{key} {value}" for key, value in trial["settings"].items())
            cells = [_cell(by_seed.get(seed), place) for seed in seeds]
            lines.append([arms[name]["title"], plain(words), *cells])
    head = ["arm", "trial", *(f"seed {seed}" for seed in seeds)]
    rows = f"{validate_rows:,} validation rows (or all, if there are fewer)"
    return (
        "## Tuning\n\nThese arms' settings were chosen on validation. Every trial was trained "
        f"as an arm of its own would be, and each seed chose the best by HitRatio@1 on {rows}, in "
        "bold here, the first of equals. No test row was read for it.\n\n"
        + markdown_table(head, lines)
    )


def _cell(one: Mapping[str, Any] | None, place: int) -> str:
    if one is None:
        return "–"
    figure = one["trials"][place]["validation"]
    if figure is None:
        return "diverged"
    text = f"{figure:.3f}"
    return f"**{text}**" if place == one["chosen"] else text
