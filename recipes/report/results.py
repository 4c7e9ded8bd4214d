"""RUN/results.json: everything that a run found, with all that is needed to judge and repeat it."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recipes.artifacts import installed_versions, read_json, read_record
from recipes.data.synthetic import ceilings
from recipes.evaluation.evaluate import GATES, METRICS
from recipes.experiment import Experiment
from recipes.report.naming import NAMES

Results = dict[str, Any]
STAND_IN = "stand-in"
UNTRAINED = ("random", "popularity")
FEW_USERS = 30
"""Below this many users a percentile interval is visibly too narrow."""


def collect(experiment: Experiment, run: Path) -> Results:
    """Gather a run's results from the folders of its stages.

    Raises:
        FileNotFoundError: A stage has not been run.
    """
    stages = ("prepare", "recommender", "evaluate")
    records = {name: read_record(run / name, name) for name in stages}
    adapters = adapter_names(experiment)
    records |= {name: read_record(run / "adapt" / name, "adapt") for name in adapters}
    manifest = read_json(run / "prepare" / "manifest.json")
    summary = read_json(run / "evaluate" / METRICS)
    results: Results = {
        "name": experiment.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "llm": _llm(experiment, run),
        "dataset": {key: value for key, value in manifest.items() if key != "config"},
        "evaluated": summary["evaluated"],
        "metrics": summary["metrics"],
        "comparisons": summary["comparisons"],
        "ceilings": _ceilings(experiment),
        "gates": read_json(run / "evaluate" / GATES),
        "trainable_parameters": {
            method: read_json(run / "adapt" / f"{method}-seed0" / "parameters.json")
            for method in experiment.adapt.methods
        },
        "config": asdict(experiment),
        "versions": installed_versions(),
        "seconds": {name: record.seconds for name, record in records.items()},
        "fingerprints": {name: record.fingerprint for name, record in records.items()},
    }
    return results | {"caveats": caveats(results)}


def adapter_names(experiment: Experiment) -> list[str]:
    """Folders of the trained adapters inside RUN/adapt."""
    return [
        f"{method}-seed{seed}"
        for method in experiment.adapt.methods
        for seed in range(experiment.seeds)
    ]


def caveats(results: Results) -> list[str]:
    """What a reader must know before believing a figure, the gravest first."""
    config, evaluated = results["config"], results["evaluated"]
    found = []
    if results["llm"]["stand_in"]:
        found.append(
            "**The language model is a stand-in**: a tiny Llama made on the spot, which knows the "
            "format of the prompts and nothing else. The figures compare methods on this toy and "
            "show that the pipeline works. They say nothing about Llama-2-7B or any real language "
            "model, and must not be set beside the paper's."
        )
    if results["dataset"]["dataset"] == "lastfm" and results["dataset"]["protocol"] == "llara":
        found.append(
            "**This protocol leaks the answer.** LLaRA's LastFM histories are in file order, which "
            "is ascending artist id, not time: the target's id always exceeds every id of the "
            "history. The rule 'the smallest candidate id above the last one' scores HitRatio@1 "
            ".319 without learning anything. Use `prepare.protocol: chronological` for a sound "
            "figure; `llara` is here to compare with published ones."
        )
    found.append(
        f"**Metrics are sampled**: a method chooses among {evaluated['num_candidates']} candidates "
        "(the target and uniform negatives), not among the whole catalogue. Sampled metrics need "
        "not keep the order that methods have on the full catalogue."
    )
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
    if config["seeds"] == 1:
        found.append(
            "Adapters were trained with **one seed**: what another seed would give is unknown."
        )
    found.append(
        "Intervals speak of other users, given these trained models. They are not corrected for "
        "the number of comparisons; the first comparison listed is the one to read."
    )
    return found


def _weak_methods(results: Results) -> list[str]:
    """Methods too weak for a comparison to mean much."""
    chance = 1 / results["evaluated"]["num_candidates"]
    metrics = [entry for entry in results["metrics"] if entry["method"] not in UNTRAINED]
    mute = [
        f"{NAMES[entry['method']]} (ValidRatio {entry['value']:.3f})"
        for entry in metrics
        if entry["key"] == "valid_ratio/generation" and entry["value"] < 0.5
    ]
    weak = [
        f"{NAMES[entry['method']]} ({entry['value']:.3f}, interval from {entry['low']:.3f})"
        for entry in metrics
        if entry["key"] == "hit_ratio@1/ranking" and entry["low"] <= chance
    ]
    ceiling = (results["ceilings"] or {}).get("last_item", 0.0)
    behind = [
        f"{NAMES[entry['method']]} ({entry['value']:.3f}, interval up to {entry['high']:.3f})"
        for entry in metrics
        if entry["key"] == "hit_ratio@1/ranking" and entry["high"] < ceiling
    ]
    found = []
    if mute:
        found.append(
            f"**Mostly no valid answer**: {', '.join(mute)}. Such generated figures measure "
            "format, not taste; read the ranked ones."
        )
    if weak:
        found.append(
            f"**Not clearly above a random order** by ranked HitRatio@1 (chance: {chance:.3f}): "
            f"{', '.join(weak)}. A difference between such methods means little."
        )
    if behind:
        found.append(
            f"**Below what the last item alone allows** ({ceiling:.3f}): {', '.join(behind)}. "
            "These have not learned what every prompt shows, so a difference to them may be one "
            "of training speed, not of what a method can do."
        )
    return found


def _ceilings(experiment: Experiment) -> dict[str, float] | None:
    """Attainable HitRatio@1, where it is known: last windows of the synthetic world."""
    prepared = experiment.prepare
    if prepared.dataset != "synthetic" or experiment.evaluate.rows != "last":
        return None
    return asdict(ceilings(prepared.synthetic.num_kinds, prepared.num_candidates))


def _llm(experiment: Experiment, run: Path) -> dict[str, Any]:
    if experiment.adapt.llm != STAND_IN:
        return {"name": experiment.adapt.llm, "stand_in": False}
    described = read_json(run / "adapt" / STAND_IN / "stand_in.json")
    return {"name": STAND_IN, **described, "stand_in": True}
