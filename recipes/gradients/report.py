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
READING = (
    "*Within groups* is what two groups that agree in everything would have: gradients of few "
    "windows are noisy, so it is below 1. **Groups pull one adapter apart only as far as *between* "
    "is below *within*.** The interval (95 %) is a bootstrap over groups."
)


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
            between, within = (f"{own[when][what]:+.2f}" for what in ("between", "within"))
            title = f"{name}, {when} training\nbetween groups {between}, within {within}"
            axes.set_title(title, fontsize=10)
            axes.set_xticks(range(len(table)), [str(k + 1) for k in range(len(table))])
            axes.set_yticks(range(len(table)), [str(k + 1) for k in range(len(table))])
            axes.tick_params(length=0)
    figure.colorbar(
        image, ax=grid, label="cosine of gradients of two halves of the users", shrink=0.7
    )
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
        "hierarchical clustering of their centroids, the same for all adapters. Users are divided "
        f"in two at random. For each group and half, the gradient of the loss on {results['rows']} "
        "windows (or all, if there are fewer) with respect to A and B is averaged over the layers' "
        "modules of one type. A cosine is of one group's gradient in one half and another's in the "
        "other, averaged over both ways and over types; on the diagonal, of a group's own two "
        "gradients. Before training B is zero, and so is A's gradient. "
        f"Seed {results['seed']}, no dropout.",
        "## Cosines between groups\n\n"
        + markdown_table(
            [
                "adapter",
                "training",
                "between groups",
                "lowest",
                "within groups",
                "within - between",
            ],
            [
                [name, when, *_figures(own[when])]
                for name, own in results["arms"].items()
                for when in WHEN
            ],
        )
        + f"\n\n{READING}",
        f"![Cosines between groups]({figure})",
        _pairs(results),
        "## Experts from clusters\n\n`expert_ranks: clusters` makes an arm of what is bold here. "
        f"{RULE}\n\n{clusters_table(results['ranks'])}"
        if results["ranks"]
        else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _figures(own: Mapping[str, Any]) -> list[str]:
    """The cells of one adapter at one time."""
    gap = own["gap"]
    return [
        *(f"{own[what]:+.3f}" for what in ("between", "lowest", "within")),
        f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]",
    ]


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
