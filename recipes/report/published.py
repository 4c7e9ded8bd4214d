"""The section of a study's page that holds its figures against published ones."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from recipes.report.markdown import markdown_table

WITHIN = 2.0
"""A figure is reproduced if it differs from the published one by at most so many standard
errors."""
Results = Mapping[str, Any]


def published_section(results: Results) -> str:
    """The section, in Markdown; `results` holds `published` (`recipes/published.py`)."""
    published = results["published"]
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
