"""The sections of a study's page that hold its figures against published ones."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from recipes.report.naming import interval
from recipes.report.tables import markdown_table

WITHIN = 2.0
"""A figure is reproduced if it differs from the published one by at most so many standard
errors."""
Results = Mapping[str, Any]


def published_sections(results: Results) -> str:
    """The sections, in Markdown; `results` holds a list `published` (`recipes/published.py`)."""
    blocks = results["published"]
    same = [one for one in blocks if one.get("same_setting", True)]
    others = [one for one in blocks if one not in same]
    found = [_reproduced(results, one) for one in same]
    return "\n\n".join([*found, *([_beside(results, others)] if others else [])])


def _beside(results: Results, blocks: Sequence[Results]) -> str:
    """Figures of another setting and ours, side by side: a line for each cell and arm."""
    labels = list(dict.fromkeys(one["label"] for one in blocks))
    fields = list(dict.fromkeys(key for one in blocks for key in one["where"]))
    found: dict[tuple[str, ...], dict[str, float]] = {}
    ours: dict[tuple[str, ...], Mapping[str, Any] | None] = {}
    for block in blocks:
        rows = {row["arm"]: row for row in results["rows"] if row["varied"] == block["where"]}
        for arm, own in block["figures"].items():
            for key, figure in own.items():
                where = (str(block["where"].get(field, "–")) for field in fields)
                line = (*where, arm, key.removesuffix("/ranking"))
                found.setdefault(line, {})[block["label"]] = figure
                ours[line] = rows[arm]["metrics"].get(key)
    table = [
        [*line, *(_figure(own.get(label)) for label in labels), _ours(ours[line])]
        for line, own in found.items()
    ]
    notes = dict.fromkeys(note for one in blocks for note in one.get("notes", ()))
    sources = dict.fromkeys(f"**{one['label']}**: {one['source']}" for one in blocks)
    return "\n\n".join(
        [
            "## Beside published figures of another setting",
            "They are from another language model, or other rows, and nothing here should "
            "reproduce them: compare the order of lines within a column, not a column with "
            "another.",
            "\n".join(f"- {line}" for line in [*sources, *notes]),
            markdown_table([*fields, "arm", "metric", *labels, "here"], table),
        ]
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _ours(entry: Mapping[str, Any] | None) -> str:
    return "–" if entry is None else interval(entry, digits=4)


def _reproduced(results: Results, published: Results) -> str:
    """The section of figures that ours should reproduce."""
    cell = next(one for one in results["cells"] if one["varied"] == published["where"])
    rows = {row["arm"]: row for row in results["rows"] if row["varied"] == published["where"]}
    keys = list(dict.fromkeys(key for own in published["figures"].values() for key in own))
    where = ", ".join(f"`{name}: {value}`" for name, value in published["where"].items())
    lines = [
        f"## Against the published figures\n\nPublished: {published['source']}.",
        f"Ours are those of the rows with {where}." if where else "",
        _counts(published["counts"], cell["dataset"]["counts"]),
        "\n".join(f"- {note}" for note in published.get("notes", ())),
        "Each cell: published, ours, and the difference in standard errors of ours (from its "
        f"interval). At most {WITHIN:g} counts as reproduced; **more is bold**.",
        markdown_table(
            ["arm", *(key.removesuffix("/ranking") for key in keys)],
            [
                [
                    arm,
                    *(_cell(own.get(key), rows[arm]["metrics"].get(key)) for key in keys),
                ]
                for arm, own in published["figures"].items()
            ],
        ),
    ]
    return "\n\n".join(line for line in lines if line)


def standard_errors(published: float, entry: Mapping[str, Any]) -> float | None:
    """Ours minus the published value, in standard errors; None if the interval has no width."""
    z = NormalDist().inv_cdf(0.5 + entry["confidence"] / 2)
    error = (entry["high"] - entry["low"]) / (2 * z)
    return (entry["value"] - published) / error if error > 0 else None


def _cell(published: float | None, entry: Mapping[str, Any] | None) -> str:
    if published is None or entry is None or entry["value"] is None:
        return "–"
    text = f"{published:.4f}, {entry['value']:.4f}"
    errors = standard_errors(published, entry) if "confidence" in entry else None
    if errors is None:
        return text
    text = f"{text} ({errors:+.1f})"
    return text if abs(errors) <= WITHIN else f"**{text}**"


def _counts(published: Mapping[str, int], found: Mapping[str, Any]) -> str:
    if not published:
        return ""
    told = []
    for name, value in published.items():
        # A user may be in several splits, so their counts do not add up to it.
        ours = found["all_users" if name == "users" else name]
        told.append(
            f"{value:,} {name}" if ours == value else f"**{value:,} {name}, here {ours:,}**"
        )
    return f"Statistics of the data, published and ours alike: {', '.join(told)}."
