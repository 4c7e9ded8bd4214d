"""What an experiment compares: its arms, and the recommenders they need."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.experiment import Experiment
from recipes.methods import METHODS
from recipes.methods.method import Arm, shown
from recipes.methods.recommender_methods import NetworkMethod
from recipes.run import Network

BASELINES = ("random", "popularity")
"""Methods that every run reports, whether its arms name them or not."""
LONGEST_NAME = 100
"""Most characters of a folder's name; a longer name is cut and ends in a checksum."""


@dataclass(frozen=True)
class Comparison:
    """The arms of an experiment, and the recommenders that they need."""

    arms: tuple[Arm, ...]
    """From simple to elaborate, by `About.order`; arms of one method in the order of the file."""
    networks: Mapping[str, Network]
    """The recommenders to train, by name: those that are arms, and those whose vectors other arms
    read."""


def comparison(experiment: Experiment) -> Comparison:
    """Resolve `arms`, or `adapt.methods`, and add the baselines and sources that are not named.

    Raises:
        ValueError: There are no arms, a method or setting is unknown, a value is impossible, two
            arms have the same settings or name, or a source gives no vectors.
    """
    asked = named_arms(experiment)
    arms = [_arm(experiment, dict(entry)) for entry in asked]
    names = {arm.name for arm in arms}
    sources = {source for arm in arms for source in arm.method.sources(arm.settings)}
    wanted = dict.fromkeys((*BASELINES, *sorted(sources)))
    extra = [name for name in wanted if name not in names]
    arms += [_arm(experiment, {"method": name}) for name in extra if name in METHODS]
    _refuse_twins(arms)
    arms.sort(key=lambda arm: arm.method.about.order)
    networks = {
        arm.name: network
        for arm in arms
        if (network := arm.method.network(arm.settings)) is not None
    }
    for source in sorted(sources - networks.keys()):
        raise _no_vectors(source, networks)
    return Comparison(tuple(arms), networks)


def named_arms(experiment: Experiment) -> Sequence[Mapping[str, Any]]:
    """The arms as the user names them.

    Raises:
        ValueError: There are none, or a method is named twice.
    """
    if experiment.arms is not None:
        if not experiment.arms:
            raise ValueError("arms=[]: name at least one, such as {method: ilora}")
        return experiment.arms
    methods = experiment.adapt.methods
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(f"adapt.methods={methods}: name each method once, at least one")
    return [{"method": name} for name in methods]


def _arm(experiment: Experiment, entry: dict[str, Any]) -> Arm:
    if not isinstance(entry.get("method"), str):
        raise ValueError(f"arm {entry} names no method: write {{method: ilora, ..}}")
    method = METHODS[entry.pop("method")]
    name = entry.pop("name", None)
    settings = method.configure(experiment, entry)
    # `name: 8` is a number in YAML.
    chosen = _default_name(method.name, entry) if name is None else str(name)
    return Arm(_folder_name(chosen), method, entry, settings)


def _default_name(method: str, given: Mapping[str, Any]) -> str:
    return ",".join([method, *(f"{key}={shown(value)}" for key, value in given.items())])


def _folder_name(name: str) -> str:
    clean = re.sub(r"[^\w.,=+-]", "_", name)
    if len(clean) <= LONGEST_NAME:
        return clean
    return f"{clean[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _refuse_twins(arms: Sequence[Arm]) -> None:
    seen: dict[str, Arm] = {}
    for arm in arms:
        same = json.dumps([arm.method.name, arm.settings], sort_keys=True)
        for key in (arm.name, same):
            if key in seen:
                raise ValueError(
                    f"the arms {seen[key].name!r} and {arm.name!r} have the same "
                    f"{'name' if key == arm.name else 'settings'}: leave one out"
                )
            seen[key] = arm


def _no_vectors(source: str, networks: Mapping[str, Network]) -> ValueError:
    known = sorted({*networks, *(n for n, m in METHODS.items() if isinstance(m, NetworkMethod))})
    what = "gives scores but no vectors" if source in METHODS else "is neither an arm nor known"
    return ValueError(
        f"recommender={source!r} {what}, so it can neither fill slots nor route: choose one of "
        f"{', '.join(known)}"
    )
