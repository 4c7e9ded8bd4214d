"""What an experiment compares: its arms, and the recommenders they need."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipes.experiment import Experiment, RecommenderConfig
from recipes.llm.stand_in import STAND_IN
from recipes.methods import METHODS
from recipes.methods.method import Arm, Method, default_name, folder_name
from recipes.methods.recommender_methods import NetworkMethod, SourceMethod
from recipes.methods.transferred import TRAINED_ON, Transferred
from recipes.methods.tuned import TUNE, Tuned
from recipes.run import Network, seeded_name, title_form

BASELINES = ("random", "popularity")
"""Methods that every run reports, whether its arms name them or not."""
UNADAPTED = "zero-shot"
"""Is reported beside them where the stand-in knows something before it is adapted."""


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
    _refuse_twins(arms)
    names, methods = {arm.name for arm in arms}, {arm.method.name for arm in arms}
    sources = {source for arm in arms for source in arm.method.sources(arm.settings)}
    read = sorted(source for source in sources if source in METHODS and source not in names)
    asked_for = [*BASELINES, *([UNADAPTED] if _knows_the_catalogue(experiment, arms) else [])]
    extra = dict.fromkeys([*(name for name in asked_for if name not in methods), *read])
    added = [_arm(experiment, {"method": name}) for name in extra]
    _refuse_copies_of_sources(arms, added)
    arms += added
    arms.sort(key=lambda arm: arm.method.about.order)
    networks = {
        arm.name: replace(network, seeds=tuple(arm.method.seeds(experiment, arm.settings)))
        for arm in arms
        if (network := arm.method.network(arm.settings)) is not None
    }
    _refuse_folders_of_seeds(networks)
    for source in sorted(sources - networks.keys()):
        raise _no_vectors(source, networks)
    if experiment.recommender.name not in {*METHODS, *names}:  # also if no arm reads its vectors
        raise _no_vectors(experiment.recommender.name, networks)
    return Comparison(tuple(arms), networks)


def _knows_the_catalogue(experiment: Experiment, arms: Sequence[Arm]) -> bool:
    """Whether an arm's language model is a stand-in that knows the train users' choices.

    Without an adapter it ranks only the candidates that its prompts list, so not where there are
    others.
    """
    if experiment.evaluate.candidates == "catalogue" or experiment.prepare.candidate_draws > 1:
        return False
    reads = any(arm.method.reads_language_model for arm in arms)
    return reads and experiment.adapt.llm == STAND_IN and title_form(experiment) == "token"


def experiments_elsewhere(experiment: Experiment, arms: Sequence[Arm]) -> dict[str, Experiment]:
    """The experiments on other data that train adapters which this one evaluates.

    Each differs in its data and folder, and has the adapters and the recommenders that they read
    as its arms. Its `recommender.name` is that of an arm of its own, or the default.

    Args:
        experiment: The experiment.
        arms: All its arms.

    Returns:
        `Transferred.place` -> experiment.

    Raises:
        ValueError: Arms name several folders or files alike, or read vectors of one dataset alone.
    """
    known = {arm.name: arm for arm in arms}
    found: dict[str, Experiment] = {}
    for arm in arms:
        method = arm.method
        if not isinstance(method, Transferred):
            continue
        place, trained = method.place, method.trained(arm)
        prepare = method.prepared(experiment.prepare)
        own = found.get(place) or replace(
            experiment,
            name=f"{experiment.name}, trained on {place}",
            out=str(Path(experiment.out) / "trained-on" / folder_name(place, distinct=True)),
            prepare=prepare,
            recommender=replace(experiment.recommender, name=RecommenderConfig.name),
            arms=[],
        )
        if own.prepare != prepare:
            raise ValueError(
                f"{TRAINED_ON}={place!r}: prepare.source={own.prepare.source!r} and "
                f"{prepare.source!r} would be two data of one name: give one of them, or rename one"
            )
        entries = [{"method": method.inner.name, **trained.given}]
        for source in (known[name] for name in method.sources(arm.settings)):
            _refuse_bound(place, source)
            named = {"method": source.method.name, "name": source.name}
            entries.append({**named, **source.given})
            if source.name == experiment.recommender.name:
                own = replace(own, recommender=experiment.recommender)
        fresh = [one for one in entries if one not in (own.arms or [])]
        found[place] = replace(own, arms=[*(own.arms or []), *fresh])
    return found


def _refuse_bound(place: str, source: Arm) -> None:
    """Refuse vectors from elsewhere that are of one dataset's users and items (ValueError)."""
    method = source.method
    if isinstance(method, SourceMethod) and not method.source.is_common:
        raise ValueError(
            f"{TRAINED_ON}={place!r}: recommender={source.name!r} has vectors of one dataset, and "
            "none of another's users and items: choose text, or a network such as sasrec"
        )


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
    if TUNE in entry:
        method = Tuned(method, entry.pop(TUNE))
    if TRAINED_ON in entry:
        method = Transferred(method, entry[TRAINED_ON])
        entry[TRAINED_ON] = method.place
    name = entry.pop("name", None)
    settings = method.configure(experiment, entry)
    chosen = default_name(method.name, entry) if name is None else _checked_name(method, name)
    return Arm(folder_name(chosen), method, entry, settings)


def _checked_name(method: Method, name: Any) -> str:
    """The name that a user gave an arm; `name: 8` is a number in YAML."""
    if isinstance(name, (list, dict)) or not str(name).strip("."):
        raise ValueError(f"arm name={name!r}: a name is a word, which becomes a folder's name")
    if name in METHODS and name != method.name:
        raise ValueError(
            f"arm name={name!r}: this is another method than the arm's, {method.name}; choose "
            "another name"
        )
    return str(name)


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
    trials = [trial.name for arm in arms for trial in arm.method.trials(arm)]
    for place, name in enumerate(trials):
        if name in seen or name in trials[:place]:
            raise ValueError(
                f"arm name={name!r} is the folder of a trial, too: give one of the arms another "
                "`name`"
            )


def _refuse_copies_of_sources(arms: Sequence[Arm], added: Sequence[Arm]) -> None:
    """Refuse an arm that is, under another name, a recommender whose vectors other arms read."""
    for source in added:
        for arm in arms:
            if (arm.method, arm.settings) == (source.method, source.settings):
                raise ValueError(
                    f"the arm {arm.name!r} has the same settings as {source.name!r}, whose vectors "
                    f"other arms read: give these `recommender: {arm.name}`, or leave it out"
                )


def _refuse_folders_of_seeds(networks: Mapping[str, Network]) -> None:
    """Refuse a name that is the folder of another network's further seed."""
    for name, network in networks.items():
        for seed in network.seeds:
            if seed != network.config.seed and seeded_name(name, seed) in networks:
                raise ValueError(
                    f"arm name={seeded_name(name, seed)!r} is the folder of {name!r} with seed "
                    f"{seed}: choose another name"
                )


def _no_vectors(source: str, networks: Mapping[str, Network]) -> ValueError:
    known = sorted({*networks, *(n for n, m in METHODS.items() if isinstance(m, NetworkMethod))})
    what = "gives scores but no vectors" if source in METHODS else "is neither an arm nor known"
    return ValueError(
        f"recommender={source!r} {what}, so it can neither fill slots nor route: choose one of "
        f"{', '.join(known)}"
    )
