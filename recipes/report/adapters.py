"""Sections of a study's page about its adapters: against their rivals, their sizes, their gates."""

from collections.abc import Mapping
from typing import Any

from recipes.report.gate_maps import weights_section
from recipes.report.naming import headline_key, per_seed, plain, several_seeds
from recipes.report.tables import markdown_table

Results = Mapping[str, Any]

TUNED = (
    " A tuned arm has the settings that its seed chose: it is counted as its first seed's, and its "
    "seconds are without those of its trials."
)


def rivals_section(results: Results) -> str:
    """Each adapter minus each of the study's `rivals`, in every cell."""
    several = any(map(several_seeds, results["cells"]))
    parts = []
    for cell in results["cells"]:
        where = ", ".join(f"{key} {plain(str(v))}" for key, v in cell["varied"].items())
        for rival in results["rivals"]:
            rows = [_difference(*one, several) for one in _against(results, cell, rival)]
            if rows:
                over = ["users and seeds", "users, these trainings"] if several else ["users"]
                head = ["arm", f"minus {rival}", *over, "seed by seed"]
                title = f"### Minus {rival}{f', {where}' if where else ''}"
                parts.append(f"{title}\n\n{markdown_table(head, rows)}")
    if not parts:
        return ""
    k = results["cells"][0]["evaluated"]["headline"]
    kinds = (
        "The first interval is for other users and other trainings; from two or three seeds it is "
        "wide, as it must be. The second is for other users, given the models that were trained "
        "here. "
    )
    return (
        f"## Against the rivals\n\nRanked HitRatio@{k}, on the same rows and resamples. "
        f"{kinds if several else ''}**Bold** intervals exclude zero. None is corrected for the "
        "number of comparisons.\n\n" + "\n\n".join(parts)
    )


Compared = tuple[str, Mapping[str, Any], int]
"""Name of an arm, its comparison with a rival, and -1 if that was made the other way round."""


def _against(results: Results, cell: Mapping[str, Any], rival: str) -> list[Compared]:
    key = headline_key(cell)
    found: list[Compared] = []
    for arm in results["arms"]:
        for entry in cell["comparisons"]:
            pair = entry["method"], entry["baseline"]
            if entry["key"] != key or not arm["is_adapter"] or entry["value"] is None:
                continue
            if pair == (arm["name"], rival) or pair == (rival, arm["name"]):
                found.append((arm["name"], entry, 1 if pair[1] == rival else -1))
    return found


def _difference(name: str, entry: Mapping[str, Any], sign: int, several: bool) -> list[str]:
    """A line of the table."""
    given = entry.get("given_trainings")
    seeds = [None if one is None else sign * one + 0.0 for one in entry["per_seed"]]
    return [
        name,
        f"{sign * entry['value'] + 0.0:+.3f}",
        _interval(entry["low"], entry["high"], sign),
        *(["–" if given is None else _interval(given[0], given[1], sign)] if several else []),
        per_seed(seeds, sign=True),
    ]


def _interval(low: float, high: float, sign: int) -> str:
    low, high = sorted((sign * low + 0.0, sign * high + 0.0))  # a zero without a sign
    text = f"[{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def sizes_section(results: Results) -> str:
    """Trained parameters by what they belong to, and times; empty if no adapter was trained."""
    rows = []
    for row in _first_rows(results):
        counts = row.get("parameters")
        if not counts:
            continue
        trunk = row["given"].get("gate") == "trunk"
        gate = ["–", f"{counts['gate']:,}"] if trunk else [f"{counts['gate']:,}", "–"]
        rows.append(
            [
                row["arm"],
                f"{counts['adapter']:,}",
                *(gate if counts["gate"] else ["–", "–"]),
                f"{counts['projector']:,}",
                f"{counts['total']:,}",
                _seconds(results["cells"][0], row["arm"]),
            ]
        )
    if not rows:
        return ""
    head = ["arm", "LoRA's A and B", "gate", "trunk", "projector", "total", "seconds a training"]
    adapt = results["cells"][0]["config"]["adapt"]
    steps, epochs = adapt["max_steps"], adapt.get("epochs")
    length = f"{steps:,} steps of" if steps is not None else f"{epochs:g} epochs in steps of"
    return (
        f"## Trained parameters\n\nEvery adapter was trained for {length} "
        f"{adapt['batch_size']} prompts, unless the arm says otherwise, at the learning rate "
        f"{adapt['learning_rate']:g} (gates: {adapt['gate_learning_rate_scale']:g} times that). "
        "Seconds are those on the machine of this study, measurements of validation included."
        f"{_of_first_cell(results)}"
        f"{TUNED if results['cells'][0].get('tuning') else ''}\n\n" + markdown_table(head, rows)
    )


def _seconds(cell: Mapping[str, Any], arm: str) -> str:
    """Mean wall-clock time of an arm's trainings, in seconds."""
    found = [
        seconds for name, seconds in cell["seconds"].items() if name.rpartition("-seed")[0] == arm
    ]
    return f"{sum(found) / len(found):.0f}" if found else "–"


def _of_first_cell(results: Results) -> str:
    """A sentence that names the first cell, where there are others."""
    first, *others = results["cells"]
    words = ", ".join(f"`{key}: {value}`" for key, value in first["varied"].items())
    return f" All this is of {words} alone." if others else ""


def _first_rows(results: Results) -> list[Mapping[str, Any]]:
    """The rows of the first cell."""
    return [row for row in results["rows"] if row["varied"] == results["rows"][0]["varied"]]


def gates_section(results: Results) -> str:
    """What gates did in the evaluated rows; empty if none was recorded.

    Those without experts are those of the first cell.
    """
    cell = results["cells"][0]
    values = [
        [
            name,
            str(one["seed"]),
            one["of"],
            f"{one['mean_abs']:.3f}",
            f"{one['mean_abs_of_mean']:.3f}",
            f"{one['std_users']:.3f}",
            f"{one['std_rows']:.3f}",
        ]
        for name, found in cell.get("modulations", {}).items()
        for one in found
    ]
    parts = []
    if values:
        head = ["arm", "seed", "of", "mean size", "the same for all", "over users", "over rows"]
        parts.append(
            "What a gate adds to plain LoRA, over all modules, rank coordinates and evaluated "
            "rows: the mean magnitude; that of the mean over rows, which is what all users share; "
            "the standard deviation over users, of each user's mean; and over rows. The value "
            "of plain LoRA is 0 (`factor`: 1, which is subtracted)."
            f"{_of_first_cell(results)}\n\n" + markdown_table(head, values)
        )
    parts += [weights_section(results)] if weights_section(results) else []
    return "## What the gates did\n\n" + "\n\n".join(parts) if parts else ""
