"""A method's description for readers, used in tables, plots and the report's text."""

from collections.abc import Sequence
from dataclasses import dataclass

LineStyle = str | tuple[float, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class About:
    """What a report needs to know about a method.

    Colours are from Okabe and Ito's palette, whose colours remain distinguishable under the common
    colour-vision deficiencies.
    """

    title: str
    """The method's name in tables and plots."""
    meaning: str
    """One phrase about the method; it completes `**title**: ..` in the report."""
    order: int
    """Place among the methods, from simple to elaborate. Tables follow this order, and a difference
    is the later method minus the earlier one."""
    ranks_by: str
    """The score by which candidates are ranked, as named in a metric's label."""
    colour: str = "#555555"
    line: LineStyle = "solid"
    """Line style of the loss curve; with dashes a curve underneath stays visible."""
