"""Models of the Hugging Face hub: what identifies one, and what is said if it cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from recipes.checksums import Checksums


def content_of(name_or_path: str, checksums: Checksums) -> str:
    """Identifies a model's content, whatever its name: a folder's checksum, or the hub's commit.

    Raises:
        OSError: There is no such model.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return checksums.of_folder(path)
    return str(extract_commit_hash(cached_file(name_or_path, "config.json"), None))


@contextmanager
def explained(field: str, name_or_path: str, remedy: str) -> Iterator[None]:
    """Turns what the libraries raise for a missing or damaged file into one line.

    Args:
        field: Name of the field that names the model, such as `adapt.llm`.
        name_or_path: Its value.
        remedy: What to give instead.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is damaged, or cannot be used.
    """
    try:
        yield
    except Exception as error:  # tokenizers and safetensors raise classes of their own
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        said = " ".join(str(error).split())
        said = said if len(said) <= 300 else f"{said[:300]} .."
        raise kind(
            f"{field}={name_or_path!r} could not be loaded: {remedy}. "
            f"{type(error).__name__}: {said}"
        ) from error
