"""What a study's gates did: heat maps of single rows' mixtures, and how experts are used."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.report.naming import plain
from recipes.report.plots import wrapped
from recipes.report.tables import markdown_table

Results = Mapping[str, Any]
COLUMNS = 4
"""Maximum number of heat maps side by side."""


def gate_tables(results: Results) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Label and summary of each gate that mixes experts, of all cells."""
    for cell in results["cells"]:
        where = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in cell["varied"].items())
        for name, gate in cell.get("gates", {}).items():
            yield (f"{name}, {where}" if where else name), gate


def weights_section(results: Results) -> str:
    """Utilisation of experts in the evaluated rows, in Markdown; empty if there are no experts.

    A gate that sends rows to different experts has a small effective number in a row and a large
    one over rows.
    """
    rows = [
        [
            plain(label),
            str(gate["seed"]),
            ", ".join(f"{weight:.2f}" for weight in gate["mean_weights"]),
            f"{gate['mean_entropy']:.2f} of {gate['uniform_entropy']:.2f}",
            f"{math.exp(gate['mean_entropy']):.2f}",
            f"{effective_number(gate['mean_weights']):.2f}",
        ]
        for label, gate in gate_tables(results)
    ]
    if not rows:
        return ""
    head = ["arm", "seed", "mean weights of experts", "mean entropy (nats)"]
    return (
        "Weights of experts, averaged over modules where each has its own. The effective number of "
        "experts is exp(entropy), of a row's weights in the mean, and of the mean weights.\n\n"
        + markdown_table([*head, "effective in a row", "effective over rows"], rows)
    )


def effective_number(weights: list[float]) -> float:
    """Exp of the entropy of weights that sum to 1."""
    return math.exp(-sum(weight * math.log(weight) for weight in weights if weight > 0))


def has_maps(results: Results) -> bool:
    """Whether some gate's weights of single rows were kept."""
    return any("weights" in gate for _, gate in gate_tables(results))


def gates_figure(results: Results) -> Figure | None:
    """A heat map for each gate: ten users' last evaluated rows, and the mean of all rows.

    Returns:
        None if no weights of single rows were kept.
    """
    shown = [(label, gate) for label, gate in gate_tables(results) if "weights" in gate]
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(1.2 + 3.1 * columns, 0.6 + 3.4 * lines), layout="constrained")
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    image = None
    for place, axes in enumerate(grid.flat):
        if place < len(shown):
            image = _map(axes, *shown[place])
        else:
            axes.set_axis_off()
    assert image is not None
    figure.colorbar(image, ax=grid, label="weight of the expert", shrink=0.6)
    figure.suptitle(f"{results['name']}: weights of experts", fontsize=12)
    return figure


def _map(axes: Axes, label: str, gate: Mapping[str, Any]) -> Any:
    table = np.vstack([gate["weights"], gate["mean_weights"]])
    image = axes.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    if table.shape[1] <= 4:
        for (row, column), value in np.ndenumerate(table):
            colour = "black" if value > 0.55 else "white"
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7
            )
    axes.axhline(len(table) - 1.5, color="white", linewidth=3)
    count = table.shape[1]
    axes.set_xticks(
        range(count), [str(k + 1) for k in range(count)], fontsize=9 if count < 9 else 6
    )
    axes.set_yticks(
        range(len(table)), [*(f"row {k + 1}" for k in range(len(table) - 1)), "mean"], fontsize=7
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("expert", fontsize=8)
    axes.set_title(wrapped(label, 34), fontsize=9)
    return image
