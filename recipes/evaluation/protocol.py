"""What a figure was measured on, in the words that stand beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.experiment import EvaluateConfig

MASKS = {"none": "", "history": ", history left out", "zero": ", history scored 0"}
ROWS = {"last": "", "first": ", first windows", "all": ", all windows"}
AVERAGES = {"rows": "", "users": ", mean over users"}
CATALOGUE_CUTOFF = 10
"""The headline's cut-off where all items are ranked, if `evaluate.ks` has it."""


@dataclass(frozen=True)
class Protocol:
    """What targets are ranked among, in which rows, and what a metric is the mean of."""

    config: EvaluateConfig
    num_candidates: int
    """Number of candidates in a row, or of items in the catalogue."""
    draws: int = 1
    """Number of candidate sets that a row is ranked in."""

    @property
    def whole_catalogue(self) -> bool:
        """Whether targets are ranked among all items."""
        return self.config.candidates == "catalogue"

    @property
    def among(self) -> str:
        """What targets are ranked among: `all 3,646 items, history left out`."""
        if not self.whole_catalogue:
            several = f", mean of {self.draws} draws" if self.draws > 1 else ""
            return f"{self.num_candidates} sampled candidates{several}"
        return f"all {self.num_candidates:,} items{MASKS[self.config.mask]}"

    @property
    def scope(self) -> str:
        """Rows and average where they are not the defaults, such as `, mean over users`."""
        return ROWS[self.config.rows or "last"] + AVERAGES[self.config.average]

    @property
    def words(self) -> str:
        """All of it, for a metric's label."""
        return self.among + self.scope

    @property
    def headline(self) -> int:
        """Cut-off of the HitRatio that reports show first."""
        return headline_cutoff(self.config.ks, self.whole_catalogue)


def headline_cutoff(ks: Sequence[int], whole_catalogue: bool) -> int:
    """The smallest cut-off; among all items 10, or the largest one below it if there is any."""
    if not whole_catalogue:
        return min(ks)
    return max((k for k in ks if k <= CATALOGUE_CUTOFF), default=min(ks))
