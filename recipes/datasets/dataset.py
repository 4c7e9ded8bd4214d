"""The interface of a dataset, which turns raw files into interactions or windows."""

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
    """User-item interactions in order. `prepare` splits the users and cuts the windows."""

    table: pd.DataFrame
    """Columns user_id, item_id, timestamp (int64 ms, or null); rows in file order. A column
    `position` (from 0 within a user) only where the dataset orders by itself."""

    titles: list[str]
    """Title of each item, by item id 0 .. num_items-1."""

    ranking: np.ndarray | None = None
    """A timestamp for each row of `table`: users are ranked by their earliest one, and split in
    that order. None stands for the column `timestamp`."""

    item_keys: list[str] | None = None
    """The source's id of each item, by item id, where it is not the number itself."""

    user_keys: list[str] | None = None
    """The source's id of each user, by user id, where it is not the number itself."""

    notes: tuple[str, ...] = ()
    """What reading took for granted, a line each; recorded in manifest.json."""


@dataclass(frozen=True)
class ReadyWindows:
    """Windows that the publisher of the data has already cut and split."""

    table: pd.DataFrame
    """Columns split (`train`, `val`, `test`), user_id, history (arrays of item ids, oldest first),
    target, is_last (bool); a user's windows are adjacent, in order of time, and all in one split.
    """

    titles: list[str]
    """Title of each item, by item id 0 .. num_items-1."""


class Dataset(ABC):
    """Base class of datasets. Subclasses are listed in `recipes/datasets/__init__.py`."""

    name: ClassVar[str]
    """Value of `prepare.dataset` that selects the dataset."""

    summary: ClassVar[str]
    """Description in one line, for `python -m recipes list`."""

    protocols: ClassVar[tuple[str, ...]] = ("chronological",)
    """Values of `prepare.protocol` that the dataset supports."""

    def check(self, config: PrepareConfig) -> None:
        """Refuse settings that the dataset does not support, before anything is read.

        Raises:
            ValueError: A value is impossible; the message names the field and the remedy.
        """
        if config.protocol not in self.protocols:
            raise ValueError(
                f"prepare.protocol={config.protocol!r}: the dataset {self.name} knows "
                f"{', '.join(self.protocols)}"
            )

    def raw_files(self, source: Path | None) -> dict[str, Path]:
        """Find the raw files, or download them if `source` is None.

        Their checksums are part of the stage's fingerprint, so this runs before every `read`.

        Args:
            source: Folder or file given by the user (`prepare.source`).

        Returns:
            Name -> path; empty for a dataset that is generated.

        Raises:
            FileNotFoundError: A file is missing, or cannot be downloaded.
            ValueError: A `source` is given, but the dataset has no files.
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
            ValueError: A file is not the expected one, or is truncated.
        """

    def caveats(self, config: PrepareConfig) -> list[str]:
        """Warnings that a report prints before its figures, in Markdown."""
        return []

    def ceilings(self, config: PrepareConfig) -> dict[str, float] | None:
        """Attainable HitRatio@1 on last windows, where it is known.

        Returns:
            A value for each amount of knowledge: `last_item` for a predictor that knows only the
            last item, `oracle` for one that knows everything; None where it is unknown.
        """
        return None
