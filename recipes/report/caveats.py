"""The warnings that a report prints before its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from recipes.data.notes import DRAWN
from recipes.experiment import AdapterSettings
from recipes.report.naming import (
    arms_of,
    headline_key,
    in_markdown,
    interval,
    plain,
    several_seeds,
)

Results = Mapping[str, Any]
FEW_USERS = 30
"""With fewer users, a percentile interval is visibly too narrow."""


def caveats(results: Results) -> list[str]:
    """What a reader must know before trusting the figures, in Markdown; the gravest comes first."""
    results = in_markdown(results)
    evaluated, found = results["evaluated"], []
    if results["llm"] is not None and results["llm"]["stand_in"]:
        found.append(_stand_in(results))
    found += [*results["dataset"]["caveats"], *_notes(results)]
    found += _ranked_among(evaluated)
    if evaluated["split"] == "val":
        found.append(_selected_on_these(results))
    found += _chosen_step(results)
    found += _unequal_training(results)
    found += _weak_methods(results)
    if evaluated["num_users"] < FEW_USERS:
        found.append(
            f"**Only {evaluated['num_users']} users** were evaluated: bootstrap intervals of so "
            "few are too narrow."
        )
    if evaluated["max_users"] is not None:
        found.append(
            f"Only the first {evaluated['max_users']} users were evaluated (`evaluate.max_users`)."
        )
    if short := evaluated.get("short_users"):
        found.append(
            f"**{short} users of the split are not evaluated**, since their histories are shorter "
            f"than {evaluated['min_history']} (`evaluate.min_history`): with "
            "`evaluate.min_history: 1` they are, and stand in slices of their own."
        )
    if ambiguous := evaluated.get("ambiguous_rows"):
        found.append(
            f"In {ambiguous} of {evaluated['num_rows']} rows another candidate has **the target's "
            "title**, as the language model's tokenizer writes it: there no generated answer can "
            "be right, and the two tie or nearly tie in the ranking."
        )
    found += _lost_rows(results)
    found += _other_versions(results)
    found += _one_seed(results)
    found.append(_intervals(results))
    return found


def _lost_rows(results: Results) -> list[str]:
    """The warning about rows whose scores are not finite."""
    lost = results["evaluated"].get("lost_rows") or {}
    if not lost:
        return []
    arms = arms_of(results)
    listed = ", ".join(f"{count} of {arms[name]['title']}" for name, count in lost.items())
    return [
        f"**Rows without finite scores** count as misses: {listed}, over all seeds. They are "
        "marked `lost` in `predictions.parquet`."
    ]


def _stand_in(results: Results) -> str:
    """What the stand-in is, and what it scores before it is adapted, if that was measured."""
    key, k = headline_key(results), results["evaluated"]["headline"]
    meaning = results["llm"]["meaning"]
    unadapted = [
        f" Before it is adapted, its ranked HitRatio@{k} is {interval(entry)}."
        for entry in results["metrics"]
        if entry["key"] == key and arms_of(results)[entry["method"]]["method"] == "zero-shot"
    ]
    return (
        f"**The language model is a stand-in**: {meaning}.{''.join(unadapted[:1])} The figures "
        "compare methods on this toy and show that the pipeline works. They say nothing about "
        "Llama-2-7B or any real language model, and must not be set beside the paper's."
    )


def _notes(results: Results) -> list[str]:
    """What was done to the interactions; of negatives only where there are any."""
    sampled = results["evaluated"]["candidates"] == "sampled"
    notes = results["dataset"].get("notes", ())
    return [note for note in notes if sampled or not note.startswith(DRAWN)]


def _ranked_among(evaluated: Mapping[str, Any]) -> list[str]:
    """The warning about what targets were ranked among."""
    if evaluated["candidates"] == "sampled":
        return [
            f"**Metrics are sampled**: a method chooses among {evaluated['num_candidates']} "
            "candidates (the target and uniform negatives), not among the whole catalogue. Sampled "
            "metrics need not keep the order that methods have on the full catalogue."
        ]
    return {
        "none": [
            "**Items that the user has met are ranked too** (`evaluate.mask: none`). Where nobody "
            "meets an item twice, they can only stand in a target's way: figures are lower than "
            "with `evaluate.mask: history`, and must not be set beside such."
        ],
        "zero": [
            "**Items that the user has met score 0** (`evaluate.mask: zero`), as in S3-Rec's code. "
            "They stay in the ranking, above whatever scores below 0, so figures depend on where a "
            "method's scores happen to lie."
        ],
        "history": [],
    }[evaluated["mask"]]


def _intervals(results: Results) -> str:
    """What intervals do and do not speak of."""
    speak = "Intervals speak of other users, given these trained models."
    if several_seeds(results):
        speak = (
            "Intervals speak of other users and, for arms with several seeds, of other trainings: "
            "the fewer the seeds, the wider they are. An arm with one seed is taken as it was "
            "trained."
        )
    return (
        f"{speak} They are not corrected for the number of comparisons; the first comparison "
        "listed is the one to read."
    )


def _one_seed(results: Results) -> list[str]:
    """The warning about arms that were trained only once."""
    adapters, networks = (results["seeds"][kind] for kind in ("adapters", "recommenders"))
    once = [
        arm["title"]
        for name, arm in arms_of(results).items()
        if len(adapters if arm["is_adapter"] else networks.get(name, ())) == 1
    ]
    if not once:
        return []
    return [f"**One seed** of {'; '.join(once)}: what another training would give is unknown."]


def _selected_on_these(results: Results) -> str:
    """The warning about the users by whom a recommender's epoch was chosen."""
    names = ", ".join(results["seeds"]["recommenders"]) or "none here"
    return (
        "**These are the validation users.** The epoch at which a recommender's training stopped "
        f"({names}) was chosen by them, and its vectors fill the prompts and route the adapters. "
        "So the figures flatter every arm that reads a recommender, and must not be set beside "
        "figures of the test split (`evaluate.split`)."
    )


def _chosen_step(results: Results) -> list[str]:
    """Which steps were chosen on validation, and whether that helped to choose for these rows."""
    adapt, trainings = results["config"]["adapt"], results.get("trainings", {})
    if adapt.get("keep", "last") == "last" or not trainings:
        return []
    listed = "; ".join(
        f"{arms_of(results)[name]['title']} "
        + ", ".join(f"{one['kept']:,} of {one['planned']:,}" for one in own)
        for name, own in trainings.items()
    )
    here = any(not arms_of(results)[name]["settings"].get("trained_on") for name in trainings)
    same = results["evaluated"]["split"] == "val" and here
    flatters = " **These rows are of the same split**, so its figures flatter." if same else ""
    return [
        f"Each adapter is that of the step with the highest HitRatio@1 on "
        f"{adapt['validate_rows']:,} validation rows of its training data (or all, if there are "
        f"fewer): {listed}."
        f"{flatters}"
    ]


def _unequal_training(results: Results) -> list[str]:
    """The warning about adapters that were not trained alike."""
    adapters = {name: arm for name, arm in arms_of(results).items() if arm["is_adapter"]}
    unlike = unequal_settings(list(adapters.values()))
    if not unlike:
        return []
    listed = "; ".join(
        f"`{name}` " + ", ".join(f"{value} ({titles})" for value, titles in values.items())
        for name, values in unlike.items()
    )
    return [
        f"**Adapters were not trained alike**: {listed}. A difference between them may come from "
        "these settings and not from the method."
    ]


UNGIVEN = {"num_trials": 1, "trained_on": "these data"}
"""Settings of which most arms have none, and what that means."""


def unequal_settings(arms: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Training settings in which arms differ.

    Args:
        arms: Entries of `results["arms"]`.

    Returns:
        Setting -> its value as text -> the titles of the arms that have it, for every setting of
        `AdapterSettings` or source of vectors that is not the same in all that have it.
    """
    names = [*(spec.name for spec in fields(AdapterSettings)), "recommender", *UNGIVEN]
    found = {}
    for name in names:
        values: dict[str, list[str]] = {}
        for arm in arms:
            if name not in arm["settings"].keys() | UNGIVEN.keys():
                continue  # the method has no such setting
            value = arm["settings"].get(name, UNGIVEN.get(name))
            text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
            values.setdefault(text, []).append(arm["title"])
        if len(values) > 1:
            found[name] = {value: "; ".join(titles) for value, titles in values.items()}
    return found


def _other_versions(results: Results) -> list[str]:
    """The warning about stages that ran with other versions than the evaluation."""
    groups: dict[str, list[str]] = {}
    for stage, versions in results["other_versions"].items():
        told = ", ".join(f"{package} {version}" for package, version in versions.items())
        groups.setdefault(told, []).append(stage)
    return [
        "Not all stages ran with the versions listed below: "
        f"{', '.join(map(plain, stages))} with {told}."
        for told, stages in groups.items()
    ]


def _weak_methods(results: Results) -> list[str]:
    """Warnings about arms that are too weak for a comparison to mean much."""
    evaluated, key, arms = results["evaluated"], headline_key(results), arms_of(results)
    chance = evaluated["chance"]

    def title(entry: Mapping[str, Any]) -> str:
        return arms[entry["method"]]["title"]

    metrics = [entry for entry in results["metrics"] if arms[entry["method"]]["learns"]]
    mute = [
        f"{title(entry)} (ValidRatio {entry['value']:.3f})"
        for entry in metrics
        if entry["key"] == "valid_ratio/generation" and entry["value"] < 0.5
    ]
    weak = [
        f"{title(entry)} ({entry['value']:.3f}, interval from {entry['low']:.3f})"
        for entry in metrics
        if entry["key"] == key and entry["low"] <= chance
    ]
    ceiling = (results["ceilings"] or {}).get("last_item", 0.0)
    behind = [
        f"{title(entry)} ({entry['value']:.3f}, interval up to {entry['high']:.3f})"
        for entry in metrics
        if entry["key"] == "hit_ratio@1/ranking" and entry["high"] < ceiling
    ]
    found = []
    if mute:
        found.append(
            f"**Mostly no valid answer**: {'; '.join(mute)}. Such generated figures measure "
            "format, not taste; read the ranked ones."
        )
    if weak:
        found.append(
            f"**Not clearly above a random order** by ranked HitRatio@{evaluated['headline']} "
            f"(chance: {chance:.3f}): {'; '.join(weak)}. A difference between such methods means "
            "little."
        )
    if behind:
        found.append(
            f"**Below what the last item alone allows** ({ceiling:.3f}): {'; '.join(behind)}. "
            "These have not learned what every prompt shows, so a difference to them may be one "
            "of training speed, not of what a method can do."
        )
    return found
