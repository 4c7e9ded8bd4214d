"""How a method introduces itself to a reader: in tables, plots and the report's text."""

from collections.abc import Sequence
from dataclasses import dataclass

LineStyle = str | tuple[float, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class About:
    """What a report needs to know of a method. Colours: Okabe and Ito's palette, which is told
    apart under the common colour-vision deficiencies.
    """

    title: str
    """In tables and plots."""
    meaning: str
    """Ends the sentence `**title**: ..` of the report."""
    order: int
    """From simple to elaborate: the order of tables, and a difference is the later method minus
    the earlier."""
    ranks_by: str
    """What candidates are ranked by, in a metric's label."""
    colour: str = "#555555"
    line: LineStyle = "solid"
    """Of the loss curve; dashes show a curve that lies under another."""
