"""Gathers RUN/results.json: all results of a run, and what is needed to judge and repeat it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recipes.artifacts import read_json
from recipes.datasets import DATASETS
from recipes.evaluation.evaluate import GATES, METRICS, MODULATIONS, evaluated_record
from recipes.evaluation.parts import planned_parts
from recipes.llm.stand_in import stand_in_description
from recipes.llm.train_adapter import LOSS, PARAMETERS, TRAINING, VALIDATION
from recipes.methods.ilora import CLUSTERS_FILE
from recipes.methods.method import Arm, arm_folder, trained_name
from recipes.methods.transferred import Transferred
from recipes.methods.tuned import TUNING
from recipes.records import Record, read_record, required_record
from recipes.report.caveats import caveats
from recipes.run import Run

Results = dict[str, Any]


def collect(run: Run, arms: Sequence[Arm]) -> Results:
    """Gather a run's results from the folders of its stages.

    Raises:
        FileNotFoundError: A stage has not been run.
        ValueError: A stage was run with other settings.
    """
    experiment, evaluation = run.experiment, run.folder / "evaluate"
    records = stage_records(run, arms)
    adapted = {trained_name(arm, seed): seed for arm, seed in trained(run, arms)}
    manifest = read_json(run.prepare_folder / "manifest.json")
    dataset = {key: value for key, value in manifest.items() if key != "config"}
    dataset["caveats"] = DATASETS[experiment.prepare.dataset].caveats(experiment.prepare)
    summary = read_json(evaluation / METRICS)
    results: Results = {
        "name": experiment.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "arms": [described(arm) for arm in arms],
        "llm": _llm(run, arms),
        "dataset": dataset,
        "evaluated": summary["evaluated"],
        "metrics": summary["metrics"],
        "comparisons": summary["comparisons"],
        "invalid": summary["invalid"],
        "slices": summary["slices"],
        "slice_differences": summary["slice_differences"],
        "order": summary["order"],
        "ceilings": _ceilings(run),
        "gates": read_json(evaluation / GATES),
        "modulations": read_json(evaluation / MODULATIONS),
        "curves": curves(run, arms),
        "trainings": of_each_seed(run, arms, TRAINING),
        "tuning": of_each_seed(run, arms, TUNING),
        "clusters": of_each_seed(run, arms, CLUSTERS_FILE),
        "trainable_parameters": trainable_parameters(run, arms),
        "seeds": {
            "adapters": sorted(set(adapted.values())),
            "recommenders": {
                name: [seed for one, seed in run.trainings if one == name]
                for name, network in run.networks.items()
                if network.source is None
            },
        },
        "config": asdict(experiment),
        "versions": records["evaluate"].versions,
        "other_versions": _other_versions(records),
        "seconds": {name: record.seconds for name, record in records.items()}
        | {"evaluate": evaluation_seconds(run, arms)},
        "fingerprints": {name: record.fingerprint for name, record in records.items()},
    }
    return results | {"caveats": caveats(results)}


def described(arm: Arm) -> dict[str, Any]:
    """Description of an arm for the report."""
    about = arm.method.about
    return {
        "name": arm.name,
        "method": arm.method.name,
        "title": arm.title,
        "meaning": about.meaning,
        "colour": about.colour,
        "line": about.line,
        "is_adapter": arm.method.is_adapter,
        "learns": arm.method.is_adapter or arm.method.network(arm.settings) is not None,
        "given": dict(arm.given),
        "settings": dict(arm.settings),
    }


def stage_records(run: Run, arms: Sequence[Arm]) -> dict[str, Record]:
    """The records of all stages behind a report, by name; the evaluation comes last."""
    records = _before_adapters(run)
    for place, other in run.elsewhere.items():
        found = _before_adapters(other).items()
        records |= {f"{name} of {place}": record for name, record in found}
    for chosen, seed in trained(run, arms):
        if isinstance(chosen.method, Transferred):
            records[trained_name(chosen, seed)] = chosen.method.training(run, chosen, seed)
            continue
        for arm in (*chosen.method.trials(chosen), chosen):
            stage = arm.method.stage(run, arm, seed)
            assert stage is not None
            folder = arm_folder(run, arm, seed)
            records[trained_name(arm, seed)] = required_record(stage, folder, "adapt")
    return records | {"evaluate": evaluated_record(run, arms)}


def _before_adapters(run: Run) -> dict[str, Record]:
    """The records of prepared data and recommenders, by name."""
    records = {"prepare": run.prepared}
    for name, seed in run.trainings:
        own = seed == run.networks[name].config.seed
        label = f"recommender {name}" if own else f"recommender {name} seed {seed}"
        records[label] = run.network_record(name, seed)
    return records


def _other_versions(records: Mapping[str, Record]) -> dict[str, dict[str, str]]:
    """Versions that stages ran with and the evaluation did not: stage -> package -> version."""
    last = records["evaluate"].versions
    found = {
        name: {
            package: version
            for package, version in record.versions.items()
            if last.get(package) != version
        }
        for name, record in records.items()
    }
    return {name: versions for name, versions in found.items() if versions}


def evaluation_seconds(run: Run, arms: Sequence[Arm]) -> float:
    """Wall-clock time of all parts of the evaluation together, in seconds."""
    parts = planned_parts(run, arms)
    return round(sum(read_record(part.folder, "evaluate").seconds for part in parts), 3)


def trained(run: Run, arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """The arms and seeds that were trained in the stage `adapt`."""
    return [
        (arm, seed)
        for arm in arms
        for seed in arm.method.seeds(run.experiment, arm.settings)
        if arm.method.stage(run, arm, seed) is not None
    ]


def curves(run: Run, arms: Sequence[Arm]) -> dict[str, dict[str, list[Any]]]:
    """Curves of each arm that the stage `adapt` trains, one for each seed.

    Returns:
        Arm -> `loss` and `validation` (empty if it was not measured) -> a curve for each seed, with
        points `{"step": .., "loss": ..}` and `{"step": .., "validation": ..}`. A training of fewer
        steps than `adapt.logging_steps` has logged no loss, and is not there.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for arm, seed in trained(run, arms):
        for kind, name in (("loss", LOSS), ("validation", VALIDATION)):
            path = arm_folder(run, arm, seed) / name
            if path.exists() and (curve := read_json(path)):
                found.setdefault(arm.name, {}).setdefault(kind, []).append(curve)
    return found


def of_each_seed(run: Run, arms: Sequence[Arm], name: str) -> dict[str, list[dict[str, Any]]]:
    """A JSON file of each training: arm -> for each seed `seed` and the file's fields."""
    found: dict[str, list[dict[str, Any]]] = {}
    for arm, seed in trained(run, arms):
        path = arm_folder(run, arm, seed) / name
        if path.exists():
            found.setdefault(arm.name, []).append({"seed": seed, **read_json(path)})
    return found


def trainable_parameters(run: Run, arms: Sequence[Arm]) -> dict[str, dict[str, int]]:
    """Numbers of trained parameters by arm: `adapter`, `gate`, `projector`, `total`."""
    found: dict[str, dict[str, int]] = {}
    for arm, seed in trained(run, arms):
        path = arm_folder(run, arm, seed) / PARAMETERS
        if arm.name not in found and path.exists():
            found[arm.name] = read_json(path)
    return found


def _ceilings(run: Run) -> dict[str, float] | None:
    """Attainable HitRatio@1; None where it is unknown.

    It is known only for last windows and sampled candidates.
    """
    prepared, evaluate = run.experiment.prepare, run.experiment.evaluate
    if evaluate.rows != "last" or evaluate.candidates != "sampled":
        return None
    return DATASETS[prepared.dataset].ceilings(prepared)


def _llm(run: Run, arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Description of the language model; None if no arm adapts one."""
    if not any(arm.method.reads_language_model for arm in arms):
        return None
    name = run.experiment.adapt.llm
    toy = stand_in_description(Path(run.llm_path))
    if toy is None:
        return {"name": name, "content": run.llm_content, "stand_in": False}
    return {"name": name, **toy, "stand_in": True}
