"""Draws docs/images/method.png, the README's figure: `python docs/figures/method.py`.

The two users and their weights are made up; everything else is the method: one frozen W, one A
and one B for all users, and a gate that scales the rank coordinates of each user's rows.
"""

from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

IMAGE = Path(__file__).parents[1] / "images" / "method.png"
INK, MUTED, FROZEN, PANEL = "#1F2933", "#5F6B7A", "#E4E8ED", "#F6F7F9"
EXPERTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
"""Okabe and Ito's palette: told apart under the common colour-vision deficiencies."""
RANK = 2
"""Rank coordinates of an expert, as drawn."""
WEIGHTS = {"user 1": (0.64, 0.22, 0.08, 0.06), "user 2": (0.07, 0.13, 0.28, 0.52)}
"""Made up; each sums to one."""
VECTORS = {"user 1": (0.9, 0.2, 0.55, 0.1, 0.7), "user 2": (0.15, 0.75, 0.3, 0.95, 0.4)}
"""Grey levels of the routing embeddings, made up."""
NARROW, WIDE = (44.0, 68.0), (36.0, 76.0)
"""Left and right end of the edges of A and B: the total rank, and the layer's width."""
ROWS = {"user 1": 35.0, "user 2": 26.0}
"""Lower edge of each user's rank coordinates."""
ROW_HEIGHT = 9.0


def text(axes: Axes, x: float, y: float, words: str, size: float = 11, **style: object) -> None:
    """A label around a point."""
    axes.text(x, y, words, **{"ha": "center", "va": "center", "color": INK, **style}, fontsize=size)


def box(axes: Axes, corner: tuple[float, float], width: float, height: float, fill: str) -> None:
    """A rectangle with round corners."""
    style = {"boxstyle": "round,pad=0,rounding_size=1.0", "linewidth": 1.0, "edgecolor": MUTED}
    axes.add_patch(FancyBboxPatch(corner, width, height, facecolor=fill, **style))


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """A line through the points, with a head at the last."""
    for start, end in pairwise(points[:-1]):
        axes.plot(*zip(start, end, strict=True), color=INK, linewidth=1.4, solid_capstyle="round")
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(*points[-2:], **style, color=INK, linewidth=1.4))


def share(ends: tuple[float, float], part: float) -> float:
    """The point at a part of the way between two ends."""
    return ends[0] + part * (ends[1] - ends[0])


def experts(axes: Axes, name: str, narrow_at: float, wide_at: float) -> None:
    """A or B: a trapezium cut into one strip for each expert."""
    count = len(EXPERTS)
    for k, colour in enumerate(EXPERTS):
        left, right = k / count, (k + 1) / count
        corners = [
            (share(NARROW, left), narrow_at),
            (share(NARROW, right), narrow_at),
            (share(WIDE, right), wide_at),
            (share(WIDE, left), wide_at),
        ]
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="white", linewidth=1.5))
        middle = (left + right) / 2
        x, y = (share(NARROW, middle) + share(WIDE, middle)) / 2, (narrow_at + wide_at) / 2
        text(axes, x, y, f"${name}_{k + 1}$", 13, color="white")


def scales(axes: Axes, user: str) -> None:
    """A user's scale of every rank coordinate: bars as high as the weights of their experts."""
    bottom = ROWS[user]
    step = (NARROW[1] - NARROW[0]) / (RANK * len(EXPERTS))
    for index in range(RANK * len(EXPERTS)):
        k = index // RANK
        height = WEIGHTS[user][k] * (ROW_HEIGHT - 1.2) / max(map(max, WEIGHTS.values()))
        corner = (NARROW[0] + (index + 0.12) * step, bottom + 0.5)
        axes.add_patch(Rectangle(corner, 0.76 * step, height, facecolor=EXPERTS[k]))


def routing(axes: Axes, user: str) -> None:
    """From a user's vector through the gate to the user's scales."""
    middle = ROWS[user] + ROW_HEIGHT / 2
    for index, level in enumerate(VECTORS[user]):
        grey = str(1 - 0.75 * level)
        cell = Rectangle(
            (106 + 2.4 * index, middle - 1.2), 2.4, 2.4, facecolor=grey, edgecolor="white"
        )
        axes.add_patch(cell)
    number = user.split()[-1]
    text(axes, 112, middle + 3.3, f"{user}:  $z_{number}$", 11)
    arrow(axes, (105, middle), (101.5, middle))
    arrow(axes, (84.5, middle), (70, middle))
    text(axes, 77.5, middle + 2.2, f"$w(z_{number})$", 12)


def method() -> Figure:
    """The whole diagram."""
    figure = Figure(figsize=(9.2, 5.5))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 122), ylim=(0, 72.9), aspect="equal")
    axes.set_axis_off()

    box(axes, (5, 3), 71, 4.6, "white")
    text(axes, 40.5, 5.2, "$x$:  input of the layer, rows of both users", 11)
    box(axes, (5, 65.6), 71, 4.6, "white")
    text(axes, 40.5, 67.8, "$h$:  output of the layer", 11)

    box(axes, (5, 12), 22, 46, FROZEN)
    text(axes, 16, 37, "$W$", 22)
    text(axes, 16, 30.5, "frozen", 11, color=MUTED)

    experts(axes, "A", narrow_at=22.5, wide_at=12)
    experts(axes, "B", narrow_at=47.5, wide_at=58)
    panel = (NARROW[0] - 1, ROWS["user 2"])
    box(axes, panel, NARROW[1] - NARROW[0] + 2, 2 * ROW_HEIGHT, PANEL)
    axes.plot((panel[0], NARROW[1] + 1), [ROWS["user 1"]] * 2, color=MUTED, linewidth=0.8)
    for user in WEIGHTS:
        scales(axes, user)
        routing(axes, user)

    box(axes, (84.5, 24), 17, 22, "white")
    text(axes, 93, 38.5, "gate", 12, weight="bold")
    text(axes, 93, 33.5, r"softmax$(W_g\, z)$", 11)
    text(axes, 93, 28.5, "one for all layers", 9.5, color=MUTED)

    for x in (16, 56):
        arrow(axes, (x, 7.6), (x, 12))
    arrow(axes, (56, 22.5), (56, 26))
    arrow(axes, (56, 44), (56, 47.5))
    arrow(axes, (16, 58), (16, 61.4), (29.8, 61.4))
    arrow(axes, (56, 58), (56, 61.4), (33.2, 61.4))
    axes.add_patch(Circle((31.5, 61.4), 1.6, facecolor="white", edgecolor=INK, linewidth=1.4))
    text(axes, 31.5, 61.3, "+", 13)
    arrow(axes, (31.5, 63), (31.5, 65.6))

    text(axes, 100, 67.2, r"$h = W x + s\, B\; \mathrm{diag}(w(z))\; A\, x$", 14)
    text(axes, 100, 61.4, "each user's rows have a $w(z)$ of their own;", 10.5, color=MUTED)
    text(axes, 100, 58, "$W$, $A$ and $B$ are the same for all", 10.5, color=MUTED)
    text(axes, 100, 15, "bars: the weight of each rank coordinate,", 10.5, color=MUTED)
    text(axes, 100, 11.6, "equal within an expert", 10.5, color=MUTED)
    return figure


if __name__ == "__main__":
    method().savefig(IMAGE, dpi=174, facecolor="white", metadata={"Software": None})
