"""What the library `datasets` reads: folders made by `save_to_disk`, folders and names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.datasets.sources.arrow import Loaded
from recipes.datasets.sources.delimited import Delimited

if TYPE_CHECKING:
    from datasets import DatasetDict

SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder made by `save_to_disk` is told."""


def saved(folder: Path, split: str) -> Loaded:
    """Open a folder made by `save_to_disk`.

    Raises:
        ValueError: The folder is damaged, or has no such split.
    """
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no whole folder of `save_to_disk`: {error}") from error
    if isinstance(found, Dataset):
        return Loaded(str(folder), found)
    return _of_split(str(folder), found, split)


def loaded(name: str, split: str, first: Delimited | None = None) -> Loaded:
    """Open what `load_dataset` knows by this name, or the tables of a folder.

    Args:
        name: Name on the hub, or a folder.
        split: Name of a split, or several, such as `train+test`.
        first: The first file of a folder of separated values, all of which are written as it is.
            Their values are left as they are; else `datasets` makes the number 7 of the id 007.

    Raises:
        ValueError: The data set cannot be loaded, or has no such split.
    """
    return _of_split(name, _load(name, {} if first is None else _as_text(first)), split)


def _as_text(first: Delimited) -> dict[str, Any]:
    from datasets import Features, Value

    texts = Features({name: Value("string") for name in first.columns()})
    written = {"sep": first.separator, "encoding": first.encoding}
    return {"features": texts, "keep_default_na": False, **written}


def _of_split(name: str, known: "DatasetDict", split: str) -> Loaded:
    from datasets import concatenate_datasets

    parts = split.split("+")
    if not set(parts) <= set(known):
        raise _no_split(name, split, list(map(str, known)))
    try:
        found = concatenate_datasets([known[part] for part in parts])
    except ValueError as error:
        raise ValueError(
            f"prepare.custom.split={split!r}: the splits of {name} have different columns "
            f"({_cause(error)}): name one"
        ) from error
    return Loaded(f"{name} ({split})", found)


def cached_files(name: str) -> dict[str, Path]:
    """The files in which `datasets` keeps a data set of the hub, which is fetched if need be."""
    paths = {
        f"{split}/{number}": Path(file["filename"])
        for split, dataset in _load(name, {}).items()
        for number, file in enumerate(dataset.cache_files)
    }
    return dict(sorted(paths.items()))


def _load(name: str, options: dict[str, Any]) -> "DatasetDict":
    from datasets import DownloadMode, disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    if Path(name).exists():
        # `datasets` tells files by their time of modification alone, and would take what it keeps
        # of older ones for a copy that bears the same time.
        options = options | {"download_mode": DownloadMode.FORCE_REDOWNLOAD}
    try:
        return load_dataset(name, **options)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"prepare.source={name!r} is no file or folder, and `datasets.load_dataset` cannot "
            f"load it ({' '.join(str(error).split())[:200]}): give a path, or fetch the data set "
            "where there is a network"
            if not Path(name).exists()
            else f"{name} holds tables that `datasets.load_dataset` cannot put together "
            f"({_cause(error)}): pass one of the files"
        ) from error


def _cause(error: BaseException) -> str:
    """What went wrong first, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]


def _no_split(name: str, split: str, known: Sequence[str]) -> ValueError:
    return ValueError(
        f"prepare.custom.split={split!r}: {name} has the splits {', '.join(known)}; name one"
    )
