"""Experts that followed from clusters of users: what was tried, and what was taken."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.report.naming import Arms
from recipes.report.tables import markdown_table

RULE = (
    "The number of experts is the number of K-means clusters (Euclidean) with the highest mean "
    "silhouette, and their ranks are the total rank shared by the clusters' sizes, 1 or more each. "
    "Only train windows were clustered, at most 2,000 of them, evenly spaced."
)


def clusters_table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each number of clusters, that of the highest silhouette in bold.

    Args:
        found: `Clustering`s as mappings, in ascending order of their numbers of clusters.
    """
    taken = max(found, key=lambda one: one["silhouette"])
    lines = [
        [
            str(len(one["sizes"])),
            ", ".join(map(str, one["sizes"])),
            f"{one['silhouette']:.3f}",
            str(one["ranks"]),
        ]
        for one in found
    ]
    place = list(found).index(taken)
    lines[place] = [f"**{cell}**" for cell in lines[place]]
    return markdown_table(["experts", "windows", "silhouette", "ranks"], lines)


def clusters_section(clusters: Mapping[str, Sequence[Mapping[str, Any]]], arms: Arms) -> str:
    """Tables of each arm whose experts follow from clusters; empty if there is none.

    Args:
        clusters: Name of an arm -> for each seed `seed` and the content of `clusters.json`. Seeds
            share the recommender, and so the clusters, unless each has chosen settings of its own.
        arms: Entries of `results.json`, by name.
    """
    if not clusters:
        return ""
    parts = [part for name, own in clusters.items() for part in _tables(arms[name]["title"], own)]
    return f"## Experts from clusters\n\n{RULE}\n\n" + "\n\n".join(parts)


def _tables(title: str, of_seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table for each different clustering, with the seeds that have it if others have not."""
    found: list[tuple[Mapping[str, Any], list[str]]] = []
    for one in of_seeds:
        clusters = {name: value for name, value in one.items() if name != "seed"}
        seeds = next((seeds for other, seeds in found if other == clusters), None)
        if seeds is None:
            found.append((clusters, seeds := []))
        seeds.append(str(one["seed"]))
    parts = []
    for clusters, seeds in found:
        whose = f", seed {', '.join(seeds)}" if len(found) > 1 else ""
        table = clusters_table(clusters["clusterings"])
        source = clusters["source"]
        parts.append(f"**{title}**{whose}, by the representations of {source}:\n\n{table}")
    return parts
