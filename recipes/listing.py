"""`python -m recipes list`: everything that can be named, with one line each."""

import json

from recipes.datasets import DATASETS
from recipes.experiment_files import EXPERIMENTS, PRESETS, STUDIES, shipped
from recipes.methods import METHODS
from recipes.recommenders import RECOMMENDERS


def entries() -> dict[str, dict[str, str]]:
    """Kind of entry -> name -> one-line summary."""
    return {
        "datasets": {name: entry.summary for name, entry in DATASETS.items()},
        "recommenders": {name: entry.summary for name, entry in RECOMMENDERS.items()},
        "methods": {name: entry.summary for name, entry in METHODS.items()},
        "experiments": shipped(EXPERIMENTS),
        "presets": shipped(PRESETS),
        "studies": shipped(STUDIES),
    }


def listing(as_json: bool) -> str:
    """All entries, as text or as JSON."""
    found = entries()
    if as_json:
        return json.dumps(found, indent=2, ensure_ascii=False)
    width = max(len(name) for names in found.values() for name in names)
    lines = []
    for kind, names in found.items():
        lines += [kind, *(f"  {name:<{width}}  {line}" for name, line in names.items()), ""]
    return "\n".join(lines).rstrip()
