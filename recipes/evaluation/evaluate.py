"""Stage `evaluate`: (arms, frozen candidates) -> predictions.parquet and metrics.

Beside `predictions.parquet` and `metrics.json` it writes what gates did: `gates.json`, the weights
of experts, and `modulations.json`, the values of gates without experts.

Each arm and seed is a part of its own under `parts/`, so an interrupted evaluation resumes with the
first missing part. Metrics and intervals are computed from the parts, without running a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recipes.artifacts import read_json, read_table, read_tensors, write_json, write_table
from recipes.evaluation.catalogue import ranked_counts
from recipes.evaluation.gates import gate_summary
from recipes.evaluation.parts import (
    GATE_WEIGHTS,
    MODULATION,
    ORDER,
    PREDICTIONS,
    Part,
    part_record,
    planned_parts,
    predict_part,
)
from recipes.evaluation.protocol import Protocol
from recipes.evaluation.slices import slice_entries, slicings
from recipes.evaluation.statistics import Resampling, ratio_interval
from recipes.evaluation.summary import random_order, random_value, summarise
from recipes.experiment import EvaluateConfig, Experiment
from recipes.methods.method import Arm
from recipes.ranges import check_ranges
from recipes.records import Record, Stage, required_record
from recipes.run import Run
from recipes.scoring.masking import Masked
from recipes.scoring.rows import EvaluatedRows, check_cutoffs, evaluated_rows, left_out
from recipes.stages import run_stage

METRICS, GATES, MODULATIONS = "metrics.json", "gates.json", "modulations.json"
VERSION = 4
"""Version of this stage, see `Record`."""


def evaluate(run: Run, arms: Sequence[Arm]) -> Record:
    """Evaluate every arm on the same rows and candidates.

    Args:
        run: The run, whose earlier stages are finished.
        arms: The arms to evaluate.

    Raises:
        FileNotFoundError: An earlier stage has not been run.
        ValueError: An earlier stage was run with other settings, or the config does not fit the
            data.
    """
    config = run.experiment.evaluate
    resampling = check_config(config)
    parts = planned_parts(run, arms)
    rows, masked = _rows(run)
    folder = run.folder / "evaluate"
    for part in parts:
        predict_part(part, run, rows, masked, config)

    def work(place: Path) -> None:
        tables = [read_table(part.folder / PREDICTIONS) for part in parts]
        table = pd.concat(tables, ignore_index=True)
        write_table(place / PREDICTIONS, table)
        protocol = Protocol(config, rows.num_candidates, rows.draws)
        random = random_order(rows.user_ids, ranked_counts(rows, masked, config))
        summary = summarise(table, arms, protocol, random, resampling)
        evaluated = {**described(rows, protocol, random), "ambiguous_rows": _ambiguous_rows(table)}
        evaluated["lost_rows"] = _lost_rows(table)
        evaluated |= left_out(run.data, config)
        divisions = slicings(run.data, rows)
        slices = slice_entries(table, arms, protocol, rows, divisions, random, resampling)
        order = _order(parts, config, resampling)
        found = {"evaluated": evaluated, **summary, "slices": slices, "order": order}
        write_json(place / METRICS, found)
        write_json(place / GATES, _gates(parts, rows))
        write_json(place / MODULATIONS, _modulations(parts))

    return run_stage(_stage(run, arms, parts), folder, work)


def predict(run: Run, arm: Arm, seed: int) -> Record:
    """Predict what `evaluate` would predict with an arm and seed, unless it is done already."""
    rows, masked = _rows(run)
    return predict_part(_planned_part(run, arm, seed), run, rows, masked, run.experiment.evaluate)


def predicted(run: Run, arm: Arm, seed: int) -> Record:
    """The record of `predict`.

    Raises:
        FileNotFoundError: Nothing has been predicted, or an earlier stage has not been run.
        ValueError: That was done with other settings.
    """
    return part_record(_planned_part(run, arm, seed))


def _planned_part(run: Run, arm: Arm, seed: int) -> Part:
    (part,) = (part for part in planned_parts(run, [arm]) if part.seed == seed)
    return part


def _rows(run: Run) -> tuple[EvaluatedRows, Masked]:
    """The rows to evaluate, and what their rankings leave out."""
    config = run.experiment.evaluate
    rows = evaluated_rows(run.data, config)
    masks = config.mask != "none"
    return rows, Masked.history(run.data, rows) if masks else Masked.nothing()


def evaluated_record(run: Run, arms: Sequence[Arm]) -> Record:
    """The record of a finished evaluation.

    Raises:
        FileNotFoundError: The evaluation or an earlier stage has not been run.
        ValueError: The evaluation or an earlier stage was run with other settings.
    """
    stage = _stage(run, arms, planned_parts(run, arms))
    return required_record(stage, run.folder / "evaluate", "evaluate")


def _stage(run: Run, arms: Sequence[Arm], parts: Sequence[Part]) -> Stage:
    settings = asdict(run.experiment.evaluate) | {"arms": [arm.name for arm in arms]}
    inputs = {part.name: part_record(part).content for part in parts}
    return Stage("evaluate", settings, inputs, VERSION)


def check_config(config: EvaluateConfig, num_candidates: int | None = None) -> Resampling:
    """Refuse impossible values before anything is loaded.

    Args:
        config: The stage's configuration.
        num_candidates: Number of candidates in a row; None if it is not known yet.

    Returns:
        The settings of the bootstrap.

    Raises:
        ValueError: A value is impossible; the message names the field and the remedy.
    """
    check_ranges(config, "evaluate.")
    if config.order_rows == 1:
        raise ValueError(
            "evaluate.order_rows=1 gives no interval: try at least 2 rows, or 0 for none"
        )
    if config.decoding == "none" and (config.num_beams > 1 or config.max_new_tokens is not None):
        raise ValueError(
            "evaluate.decoding='none' writes nothing, and evaluate.num_beams or max_new_tokens is "
            "given: leave them out, or choose evaluate.decoding `free` or `candidates`"
        )
    if len(set(config.ks)) < len(config.ks):
        raise ValueError(f"evaluate.ks={config.ks} names a cut-off twice: leave one out")
    if config.candidates == "sampled":
        if config.mask != "none":
            raise ValueError(
                f"evaluate.mask={config.mask!r} is for a ranking of all items, and "
                "evaluate.candidates='sampled' ranks a few: choose `catalogue`, or mask `none`"
            )
        if num_candidates is not None:
            check_cutoffs(config.ks, num_candidates)
            if config.decoding == "candidates" and config.num_beams > num_candidates:
                raise ValueError(
                    f"evaluate.num_beams={config.num_beams}, but only {num_candidates} candidates "
                    "may be written (evaluate.decoding='candidates'): choose fewer beams"
                )
    return Resampling(
        samples=config.bootstrap_samples, confidence=config.confidence, seed=config.seed
    )


def check_arms(experiment: Experiment, arms: Sequence[Arm]) -> None:
    """Refuse arms that rank nothing but the candidates of their prompts, where there are others.

    Raises:
        ValueError: All items are ranked, or several draws; or all items are, and a language model's
            beams do not show as many as `evaluate.ks` asks for. The message names arm and field.
    """
    config, draws = experiment.evaluate, experiment.prepare.candidate_draws
    whole = config.candidates == "catalogue"
    if not whole and draws == 1:
        return
    field, remedy = "evaluate.candidates='catalogue'", "evaluate.candidates `sampled`"
    if not whole:
        field, remedy = f"prepare.candidate_draws={draws}", "prepare.candidate_draws 1"
    for arm in arms:
        if arm.method.ranks_listed(arm.settings):
            unlisted = "list_candidates" in arm.settings
            cure = "train it with adapt.list_candidates false, " if unlisted else ""
            raise ValueError(
                f"{field}: the arm {arm.name!r} ranks only the candidates of its prompts: {cure}"
                f"leave it out, or choose {remedy}"
            )
        if whole and arm.method.reads_language_model:
            _check_beams(arm, config)


def _check_beams(arm: Arm, config: EvaluateConfig) -> None:
    """Refuse to rank all items by a language model that writes what is none, or too few of them."""
    if config.decoding != "candidates":
        raise ValueError(
            f"evaluate.candidates='catalogue': the arm {arm.name!r} ranks by the titles that it "
            f"writes, for which evaluate.decoding={config.decoding!r} must be `candidates`"
        )
    if max(config.ks) > config.num_beams:
        raise ValueError(
            f"evaluate.ks holds {max(config.ks)}, but evaluate.num_beams={config.num_beams} beams "
            f"of the arm {arm.name!r} show no more items: raise evaluate.num_beams to "
            f"{max(config.ks)}, or leave the cut-off out"
        )


def described(rows: EvaluatedRows, protocol: Protocol, random: pd.DataFrame) -> Mapping[str, Any]:
    """What was evaluated, and how, for the report.

    Args:
        rows: The evaluated rows.
        protocol: What their targets are ranked among.
        random: `random_order`'s predictions of these rows.
    """
    config, k = protocol.config, protocol.headline
    return {
        "split": config.split,
        "rows": config.rows,
        "candidates": config.candidates,
        "mask": config.mask,
        "average": config.average,
        "min_history": config.min_history,
        "max_users": config.max_users,
        "num_rows": len(rows) // rows.draws,
        "num_users": len(np.unique(rows.user_ids)),
        "num_candidates": rows.num_candidates,
        "among": protocol.among,
        "words": protocol.words,
        "headline": k,
        "chance": random_value(f"hit_ratio@{k}/ranking", protocol, random),
    }


def _ambiguous_rows(table: pd.DataFrame) -> int:
    """The number of rows whose target no generated answer can name."""
    if "ambiguous" not in table:  # parts of an earlier version, of methods that write nothing
        return 0
    return int(table.loc[table["ambiguous"].fillna(False), "row"].nunique())


def _lost_rows(table: pd.DataFrame) -> Mapping[str, int]:
    """Of each arm that lost any, the number of rows with a NaN among their scores, of all seeds."""
    counts = table.loc[table["lost"]].groupby("method", sort=False).size()
    return {str(name): int(count) for name, count in counts.items()}


def _order(
    parts: Sequence[Part], config: EvaluateConfig, resampling: Resampling
) -> list[dict[str, Any]]:
    """What the order of listed candidates changed, one entry for each arm on which it was tried."""
    changes: dict[str, dict[int, pd.DataFrame]] = {}
    for part in parts:
        path = part.folder / ORDER
        if path.exists():
            table = pd.DataFrame(read_json(path)).set_index(["rows", "user_ids"])
            changes.setdefault(part.arm.name, {})[part.seed] = table
    found = []
    for name, seeds in changes.items():
        # A row that one seed has no finite scores of is left out of all.
        table = pd.concat(seeds, axis=1, join="inner").sort_index()
        shares, users = table.to_numpy().T, table.index.get_level_values("user_ids").to_numpy()
        if len(np.unique(users)) < 2:
            continue
        estimate = ratio_interval(shares, np.ones_like(shares), users, resampling)
        assert estimate is not None
        entry = {"method": name, "seeds": list(seeds), "orders": config.order_permutations}
        found.append({**entry, **asdict(estimate)})
    return found


def _gates(parts: Sequence[Part], rows: EvaluatedRows) -> Mapping[str, Any]:
    """Summary of the gate of each gated arm, for its first seed."""
    found: dict[str, Any] = {}
    for part in parts:
        path = part.folder / GATE_WEIGHTS
        if part.arm.name not in found and path.exists():
            weights = read_tensors(path)["weights"].double().numpy()
            kept = np.isfinite(weights).all(axis=1)
            if kept.any():
                ids = rows.user_ids[kept], rows.rows[kept]
                found[part.arm.name] = gate_summary(weights[kept], *ids, seed=part.seed)
    return found


def _modulations(parts: Sequence[Part]) -> Mapping[str, Any]:
    """What the gates without experts did: arm -> `modulation_summary`'s figures of each seed."""
    found: dict[str, list[Any]] = {}
    for part in parts:
        path = part.folder / MODULATION
        if path.exists():
            own = found.setdefault(part.arm.name, [])
            own += [{"seed": part.seed, **one} for one in read_json(path)]
    return found
