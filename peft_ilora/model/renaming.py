"""Modules that are renamed as an adapter is loaded, by which PEFT follows transformers' renames.

A file has the names that its modules had, in its keys. Without a renaming they are the model's, and
the rows of a trunk's embeddings, which are places among the sorted names, are the same ones.
"""

import re
from collections.abc import Iterable, Mapping

from peft_ilora.gating.trunk import embedding_rows

_PREFIX = "base_model.model."
_MODULE = re.compile(r"\.ilora_(embedding_)?A\b.*")


def check_renaming(keys: Iterable[str], key_mapping: Mapping[str, str]) -> None:
    """Refuse a renaming that sorts the modules of a trunk otherwise.

    Args:
        keys: Keys of the file.
        key_mapping: Pattern -> replacement, as PEFT takes it: the first that matches is applied.

    Raises:
        ValueError: A layer or a module would read the row of another one.
    """
    saved = [_MODULE.sub("", key.removeprefix(_PREFIX)) for key in keys if _MODULE.search(key)]
    renamed = [_renamed(name, key_mapping) for name in saved]
    if embedding_rows(saved) == embedding_rows(renamed):
        return
    place = next(k for k, name in enumerate(saved) if name != renamed[k])
    raise ValueError(
        f"key_mapping={dict(key_mapping)!r} renames {saved[place]} to {renamed[place]}, among "
        "others, and sorts the adapted modules otherwise: with gate='trunk' they would read each "
        "other's rows. Load the adapter with the version of transformers that it was saved with"
    )


def _renamed(name: str, key_mapping: Mapping[str, str]) -> str:
    for pattern, replacement in key_mapping.items():
        found, count = re.subn(pattern, replacement, name)
        if count:
            return found
    return name
