"""Tokenises texts and caches token ids on disk, for all adapters of a run and its evaluation."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from recipes.artifacts import read_tensors, write_tensors
from recipes.prompting.plain_text import as_plain_text
from recipes.prompting.ragged import Ragged

VERSION = 2
"""Raised when the same texts begin to have other tokens."""
SEAL = "sha256"
"""Name of the array by which a damaged file is noticed."""


def tokenised(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], cache: Path | None = None
) -> list[list[int]]:
    """Token ids of each text, without special tokens.

    Args:
        tokenizer: The language model's tokenizer.
        texts: Plain texts. The spelling of a special token, such as "</s>", is not treated as one.
        cache: Folder of cached files. Their names are checksums of tokenizer and texts, so they
            never become outdated; a damaged one is made again. None disables the cache.

    Raises:
        ValueError: See `as_plain_text`.
    """
    if not texts:
        return []
    path = None if cache is None else cache / f"{_key(tokenizer, texts)}.safetensors"
    if path is not None and (rows := _cached(path)) is not None:
        return [rows.row(index) for index in range(len(rows))]
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    tokens = as_plain_text(tokenizer, texts, encoded["input_ids"])
    if path is not None:
        rows = Ragged.from_rows(tokens)
        arrays = {**vars(rows), SEAL: _seal(rows)}
        write_tensors(path, {name: torch.from_numpy(values) for name, values in arrays.items()})
    return tokens


def _cached(path: Path) -> Ragged | None:
    """The rows of a cached file; None if it is missing or damaged, and is to be made again."""
    try:
        found = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
        seal, rows = found.pop(SEAL), Ragged(**found)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return rows if np.array_equal(seal, _seal(rows)) else None


def _seal(rows: Ragged) -> NDArray[np.uint8]:
    """SHA-256 over the rows, uint8 [32]."""
    digest = hashlib.sha256(rows.values.tobytes() + rows.offsets.tobytes()).digest()
    return np.frombuffer(digest, np.uint8).copy()


def _key(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str:
    """SHA-256 of what determines the token ids: the tokenizer's files and code, and the texts."""
    code = [f"{type(tokenizer)} {name} {version(name)}" for name in ("transformers", "tokenizers")]
    digest = hashlib.sha256(json.dumps([VERSION, code, list(texts)]).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):  # further chat templates lie in a folder
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
