"""The interface of a dataset, which turns raw files into interactions or windows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd

from recipes.experiment import PrepareConfig

ACROSS_SPLITS = ("leave-one-out", "temporal")
"""The protocols under which a user may be in several splits."""
BY_TIME = ("chronological", *ACROSS_SPLITS)
"""The protocols of a dataset whose interactions are ordered by time."""


@dataclass(frozen=True)
class Interactions:
    """User-item interactions. `prepare` orders, filters and splits them, and cuts the windows."""

    table: pd.DataFrame
    """Columns user_id (int64), item_id (int64) and timestamp (int64, ms; null where it is unknown);
    rows in the order of the file. A column `position` (from 0 within a user) is the order within a
    user, where that is another one than `prepare.ties` gives."""

    titles: list[str]
    """Title of each item, by item id 0 .. num_items-1."""

    ranking: np.ndarray | None = None
    """A timestamp for each row of `table`: users are ranked by their earliest one, and split in
    that order. None stands for the column `timestamp`."""

    item_keys: list[str] | None = None
    """The source's id of each item, by item id; None where item ids are those of the source."""

    user_keys: list[str] | None = None
    """The source's id of each user, by user id; None where user ids are those of the source."""

    notes: tuple[str, ...] = ()
    """What reading the source took for granted, in Markdown, for manifest and report."""


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

    protocols: ClassVar[tuple[str, ...]] = BY_TIME
    """Values of `prepare.protocol` that the dataset supports."""

    ties: ClassVar[Literal["stable", "item-id", "random", "drop"]] = "stable"
    """What `prepare.ties: null` stands for."""

    has_ratings: ClassVar[bool] = False
    """Whether the dataset reads `prepare.min_rating`."""

    has_reference_titles: ClassVar[bool] = False
    """Whether the dataset can make the titles that the reference implementation makes."""

    @property
    def is_made_up(self) -> bool:
        """Whether the interactions are generated, from no files, and so are nobody's."""
        return type(self).raw_files is Dataset.raw_files

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
        if config.protocol == "llara":
            _refuse_unlike_llara(config)
        rule = None if config.protocol == "llara" else config.ties or self.ties
        if rule != "random" and config.tie_seed != PrepareConfig.tie_seed:
            raise ValueError(
                f"prepare.tie_seed={config.tie_seed}: only prepare.ties=random reads it; leave it "
                "out"
            )
        if config.protocol != "temporal" and config.holdout != PrepareConfig.holdout:
            raise ValueError(
                f"prepare.holdout={config.holdout}: only prepare.protocol=temporal reads it; "
                "leave it out"
            )
        if config.protocol in ACROSS_SPLITS and config.train_share != 1:
            raise ValueError(
                f"prepare.train_share={config.train_share}: under prepare.protocol="
                f"{config.protocol!r} the users of training are those of the other splits too; "
                "leave it out, or choose prepare.protocol=chronological"
            )
        if config.min_rating is not None and not self.has_ratings:
            raise ValueError(
                f"prepare.min_rating={config.min_rating:g}: the dataset {self.name} has no "
                "ratings; leave it out"
            )
        if config.titles == "reference" and not self.has_reference_titles:
            raise ValueError(
                f"prepare.titles='reference': the reference implementation has no titles of the "
                f"dataset {self.name}; leave it out"
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


def _refuse_unlike_llara(config: PrepareConfig) -> None:
    """Refuse settings that `llara`, which is one fixed rule, does not read (ValueError)."""
    for name in ("ties", "min_rating", "core"):
        value = getattr(config, name)
        if value is not None:
            raise ValueError(
                f"prepare.{name}={value!r}: prepare.protocol='llara' has an order and a filter of "
                "its own; leave it out, or choose prepare.protocol=chronological"
            )
