"""What a dataset is to the rest of the pipeline: raw files that become interactions or windows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from recipes.experiment import PrepareConfig


@dataclass(frozen=True)
class Interactions:
    """Who met what, in which order. `prepare` splits the users and cuts the windows."""

    table: pd.DataFrame
    """Columns user_id, item_id, position (from 0 within a user), timestamp (ms, or null); rows in
    any order."""

    titles: list[str]
    """By item id, 0 .. num_items-1."""

    ranking: np.ndarray | None = None
    """A timestamp for each row of `table`: users are ranked by their earliest one, and split in
    that order. None: the column `timestamp`."""


@dataclass(frozen=True)
class ReadyWindows:
    """Windows that were cut and split by whoever published them."""

    table: pd.DataFrame
    """Columns split (`train`, `val`, `test`), user_id, history (arrays of item ids, oldest first),
    target, is_last (bool); a user's windows are adjacent, in order of time, and all in one split.
    """

    titles: list[str]
    """By item id, 0 .. num_items-1."""


class Dataset(ABC):
    """One dataset. Subclasses are listed in `recipes/datasets/__init__.py`."""

    name: ClassVar[str]
    """Value of `prepare.dataset`."""

    summary: ClassVar[str]
    """One line for `python -m recipes list`."""

    protocols: ClassVar[tuple[str, ...]] = ("chronological",)
    """Values of `prepare.protocol` that the dataset knows."""

    def check(self, config: PrepareConfig) -> None:
        """Refuse settings that the dataset cannot serve, before anything is read.

        Raises:
            ValueError: Which field, its value and the remedy.
        """
        if config.protocol not in self.protocols:
            raise ValueError(
                f"prepare.protocol={config.protocol!r}: the dataset {self.name} knows "
                f"{', '.join(self.protocols)}"
            )

    def raw_files(self, source: Path | None) -> dict[str, Path]:
        """The raw files by name; they are downloaded where `source` is None.

        Their checksums are part of the stage's fingerprint, so this runs before every `read`. A
        dataset that is made on the spot has none.

        Args:
            source: Folder or file that the user names.

        Raises:
            FileNotFoundError: A file is missing, or cannot be downloaded.
            ValueError: A `source` is given to a dataset that needs none.
        """
        if source is not None:
            raise ValueError(
                f"prepare.source={str(source)!r}: the {self.name} dataset has no files; omit it"
            )
        return {}

    @abstractmethod
    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions | ReadyWindows:
        """Read the raw files.

        Args:
            config: The stage's settings, protocol included.
            files: What `raw_files` returned.

        Raises:
            ValueError: A file is not what its name says, or is truncated.
        """

    def caveats(self, config: PrepareConfig) -> list[str]:
        """What a reader of a report must know before believing a figure, in Markdown."""
        return []

    def ceilings(self, config: PrepareConfig) -> dict[str, float] | None:
        """Attainable HitRatio@1 on last windows, by what a predictor knows, where it is known:
        `last_item`, `oracle`.
        """
        return None
