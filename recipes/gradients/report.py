"""The page and the plot of `gradients`, made from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from recipes.report.clusters import RULE, clusters_table
from recipes.report.naming import plain
from recipes.report.tables import markdown_table

Results = Mapping[str, Any]
WHEN = ("before", "after")
FIGURE = "gradients.png"


def gradient_figure(results: Results) -> Figure:
    """A heat map of cosines for each adapter, before and after its training."""
    arms = results["arms"]
    figure = Figure(figsize=(7.6, 0.6 + 3.4 * len(arms)), layout="constrained")
    grid: Any = figure.subplots(len(arms), len(WHEN), squeeze=False)
    image: Any = None
    for row, (name, own) in enumerate(arms.items()):
        for column, when in enumerate(WHEN):
            axes, table = grid[row][column], np.array(own[when]["cosines"])
            image = axes.imshow(table, vmin=-1, vmax=1, cmap="RdBu_r")
            mean = own[when]["mean"]
            axes.set_title(f"{name}, {when} training\nmean of pairs {mean:+.2f}", fontsize=10)
            axes.set_xticks(range(len(table)), [str(k + 1) for k in range(len(table))])
            axes.set_yticks(range(len(table)), [str(k + 1) for k in range(len(table))])
            axes.tick_params(length=0)
    figure.colorbar(image, ax=grid, label="cosine of the groups' gradients", shrink=0.7)
    figure.suptitle(f"{results['name']}: {len(results['sizes'])} groups of users", fontsize=12)
    return figure


def without_users(results: Results) -> dict[str, Any]:
    """The results without users and their items, which are not ours to publish."""
    pairs = {what: {"cosine": pair["cosine"]} for what, pair in results["pairs"].items()}
    return {**results, "pairs": pairs}


def gradient_page(results: Results, figure: str) -> str:
    """The page in Markdown.

    Args:
        results: The content of gradients.json.
        figure: File name of the heat maps.
    """
    sections = [
        f"# Gradients: {plain(results['name'])}",
        f"K-means (Euclidean) puts {sum(results['sizes']):,} train windows, by the "
        f"representations of {results['source']}, into {len(results['sizes'])} groups of "
        f"{', '.join(map(str, results['sizes']))}. Groups are numbered in the order of a "
        "hierarchical clustering of their centroids, the same for all adapters. For each group, "
        f"the gradient of the loss on {results['rows']} of its windows (or all, if there are "
        "fewer) with respect to A and B is averaged over the layers' modules of one type. Cosines "
        "between groups are averaged over types. Before training B is zero, and so is A's "
        f"gradient. Seed {results['seed']}, no dropout.",
        "## Cosines between groups\n\n"
        + markdown_table(
            ["adapter", *(f"{when}: {what}" for when in WHEN for what in ("mean", "lowest"))],
            [
                [name, *(f"{own[when][what]:+.3f}" for when in WHEN for what in ("mean", "lowest"))]
                for name, own in results["arms"].items()
            ],
        ),
        f"![Cosines between groups]({figure})",
        _pairs(results),
        "## Experts from clusters\n\n`expert_ranks: clusters` makes an arm of what is bold here. "
        f"{RULE}\n\n{clusters_table(results['ranks'])}"
        if results["ranks"]
        else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _pairs(results: Results) -> str:
    """The pairs of users whose gradients are most and least alike, with their items."""
    parts = []
    for what, pair in results["pairs"].items():
        users = [
            f"- user {one['user']}: {'; '.join(map(plain, one['history']))} → "
            f"**{plain(one['target'])}**"
            for one in pair.get("users", ())
        ]
        parts.append("\n".join([f"**{what}**: cosine {pair['cosine']:+.3f}.", "", *users]).strip())
    return (
        f"## Pairs of users\n\nAmong {results['users']} windows of different users, gradients of "
        f"{results['pairs_of']} after training:\n\n" + "\n\n".join(parts)
    )
