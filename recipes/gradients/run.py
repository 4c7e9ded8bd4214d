"""Runs an experiment up to its adapters, and compares the gradients that groups of users give.

The paper's analysis (arXiv 2408.10159): representations are clustered, and the gradients that the
clusters give one LoRA are compared. Where they disagree, one LoRA for all serves none well.

A low cosine alone does not say that groups disagree: a gradient of a few windows is noisy, and the
more so after training. So users are divided in two, and the gradient of a group's windows of one
half is compared with those of all groups' windows of the other half, its own group's too. That one
is what two groups without any disagreement would have.

Of an arm with `tune` the chosen trial is looked at. Adapters that are trained on other data are
not: their train windows are others.

RUN/gradients.json, gradients.md, gradients.html, gradients.png, gradients.svg
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
from peft import LoraConfig

from recipes.artifacts import write_json, write_text
from recipes.data.padding import PADDING
from recipes.experiment import Experiment
from recipes.gradients.agreement import of_groups, similarities, summary
from recipes.gradients.groups import groups_of, two_halves
from recipes.gradients.measure import gradients, trained, untrained
from recipes.gradients.report import FIGURE, gradient_figure, gradient_page
from recipes.llm.train_adapter import training_collator, training_rows
from recipes.locking import held
from recipes.methods.adapter import AdapterMethod
from recipes.methods.expert_ranks import clusterings
from recipes.methods.method import Arm, arm_folder, trained_alone
from recipes.methods.tuned import Tuned
from recipes.pipeline import Pipeline
from recipes.prompting.collator import TrainingCollator
from recipes.ranges import Count, Range, check_ranges
from recipes.report.page import page
from recipes.report.plots import save
from recipes.run import Run
from recipes.scoring.arrays import Floats, Ints

SEED = 0
"""Training seed of the adapters whose gradients are compared; no other is trained for them."""
MOST_WINDOWS = 5000
"""Most train windows that are clustered, evenly spaced."""


@dataclass(kw_only=True)
class GradientsConfig:
    """What is compared."""

    groups: Annotated[int, Range(2)] = 8
    """Number of groups of users (paper: 8)."""

    rows: Count = 64
    """Train windows of each group and half of the users, of which a gradient is the mean."""

    users: Annotated[int, Range(2)] = 24
    """Windows of different users among which the most and the least alike pair is looked for."""

    batch_size: Count = 32
    """Windows that are run at once."""


def run_gradients(experiment: Experiment, config: GradientsConfig) -> Mapping[str, Any]:
    """Run the stages up to the adapters, as far as they are not done, and compare gradients.

    Returns:
        The content of `gradients.json`.

    Raises:
        ValueError: No arm is a LoRA whose gradients could be compared, a setting is impossible, or
            there are fewer different users than groups, or a group has none in half of the users.
    """
    check_ranges(config, "")
    pipeline = _of_loras(Pipeline.of(replace(experiment, seeds=1)))
    trainings = trained_alone(pipeline.arms)
    _check(pipeline.run, trainings)
    pipeline.prepare()
    pipeline.recommender()
    groups = _grouped(pipeline.run, trainings[0], config)
    pipeline.adapt()
    with held(pipeline.run.folder):
        chosen = [_chosen(pipeline.run, arm) for arm in pipeline.arms]
        results = _compared(pipeline.run, chosen, groups, config)
        folder = pipeline.run.folder
        write_json(folder / "gradients.json", results)
        figure = gradient_figure(results)
        save(figure, folder / FIGURE, (folder / FIGURE).with_suffix(".svg"))
        text = gradient_page(results, FIGURE)
        write_text(folder / "gradients.md", text)
        images = {FIGURE: (folder / FIGURE).read_bytes()}
        title = f"Gradients: {experiment.name}"
        write_text(folder / "gradients.html", page(title, text, images, None))
    print(text)
    return results


def _of_loras(pipeline: Pipeline) -> Pipeline:
    """The pipeline with those arms alone that train a LoRA on its data, and what they read."""
    arms = tuple(arm for arm in pipeline.arms if _is_lora(arm))
    experiment, networks = pipeline.run.experiment, pipeline.run.networks
    read = {experiment.recommender.name}
    read.update(source for arm in arms for source in arm.method.sources(arm.settings))
    kept = {name: network for name, network in networks.items() if name in read}
    return Pipeline(Run(experiment, kept), arms)


def _is_lora(arm: Arm) -> bool:
    method = arm.method.inner if isinstance(arm.method, Tuned) else arm.method
    return isinstance(method, AdapterMethod) and issubclass(method.Peft, LoraConfig)


def _chosen(run: Run, arm: Arm) -> Arm:
    """The arm, or the trial that it has chosen."""
    return arm.method.chosen(run, arm, SEED) if isinstance(arm.method, Tuned) else arm


def _check(run: Run, arms: Sequence[Arm]) -> None:
    if not arms:
        raise ValueError("no arm trains a LoRA on these data: give --methods '[lora, ilora]'")
    source = run.experiment.recommender.name
    if source not in run.networks:
        raise ValueError(
            f"no arm reads the vectors of {source}, by which users are grouped: add one, such as "
            "lora"
        )
    windows: dict[tuple[int, int | None], str] = {}
    for arm in arms:
        assert isinstance(arm.method, AdapterMethod)
        settings = arm.method.settings_of(arm)
        windows.setdefault((settings.min_history, settings.train_windows), arm.name)
        if len(windows) > 1:
            raise ValueError(
                f"the arms {' and '.join(windows.values())} train on different windows: give them "
                "the same min_history and train_windows"
            )
        if settings.frozen_prefix:
            raise ValueError(
                f"adapt.frozen_prefix=true of arm {arm.name}: gradients are taken through the "
                "whole model, so set it false"
            )


@dataclass(frozen=True)
class _Groups:
    """The train windows that are compared, by their numbers among an arm's samples."""

    rows: Ints
    """int64 [samples], row of the train split of each sample."""
    sizes: list[int]
    """Number of windows in each group."""
    samples: list[list[int]]
    """For each group, the samples of users of the one half whose gradient is taken, then those of
    users of the other."""
    singles: list[int]
    """Samples of different users."""


def _grouped(run: Run, arm: Arm, config: GradientsConfig) -> _Groups:
    """Groups of the windows on which an arm is trained."""
    assert isinstance(arm.method, AdapterMethod)
    split, settings = run.data.split("train"), arm.method.settings_of(arm)
    rows = training_rows(split, settings)
    chosen = np.unique(np.linspace(0, len(rows) - 1, MOST_WINDOWS).round().astype(np.int64))
    known = run.vectors(run.experiment.recommender.name).users["train"]
    groups = groups_of(known[rows[chosen]], config.groups)
    random = np.random.default_rng(SEED)
    halves = two_halves(split.user_ids[rows[chosen]], groups, random)
    return _Groups(
        rows=rows,
        sizes=np.bincount(groups, minlength=config.groups).tolist(),
        samples=[
            np.sort(random.permutation(chosen[half])[: config.rows]).tolist() for half in halves
        ],
        singles=_different_users(split.user_ids[rows], chosen, config.users, random),
    )


def _ranks(run: Run, arm: Arm, rows: Ints) -> list[dict[str, Any]]:
    """Experts from clusters, for each number of them (`Clustering`), of an arm's total rank."""
    assert isinstance(arm.method, AdapterMethod)
    total = arm.method.settings_of(arm).rank
    known = run.vectors(run.experiment.recommender.name).users["train"]
    return [asdict(one) for one in clusterings(known[rows], total)] if total > 1 else []


def _compared(
    run: Run, arms: Sequence[Arm], groups: _Groups, config: GradientsConfig
) -> dict[str, Any]:
    first = arms[0]
    found: dict[str, Any] = {}
    pairs: dict[str, Any] = {}
    for arm in arms:
        singles = groups.singles if arm is first else []
        tables, alone = _of_arm(run, arm, groups.samples, singles, config)
        for table in (*tables.values(), *([] if alone is None else [alone])):
            _refuse_no_direction(arm, table)
        found[arm.name] = {when: summary(table) for when, table in tables.items()}
        if alone is not None:
            pairs = _pairs(run, groups.rows[singles], alone)
    return {
        "name": run.experiment.name,
        "source": run.experiment.recommender.name,
        "seed": SEED,
        "rows": config.rows,
        "users": len(groups.singles),
        "sizes": groups.sizes,
        "arms": found,
        "pairs_of": first.name,
        "pairs": pairs,
        "ranks": _ranks(run, first, groups.rows),
    }


def _different_users(
    user_ids: Ints, chosen: Ints, count: int, random: np.random.Generator
) -> list[int]:
    """Numbers of samples of different users, drawn at random."""
    order = random.permutation(chosen)
    _, places = np.unique(user_ids[order], return_index=True)
    return np.sort(order[np.sort(places)[:count]]).tolist()


def _of_arm(
    run: Run,
    arm: Arm,
    samples: Sequence[Sequence[int]],
    singles: Sequence[int],
    config: GradientsConfig,
) -> tuple[dict[str, Floats], Floats | None]:
    """Cosines between halves of groups, before and after training, and between samples after it.

    Returns:
        `before` and `after` -> float64 [g, g], see `of_groups`; float64 [n, n] of the n singles, or
        None without any.
    """
    method = arm.method
    assert isinstance(method, AdapterMethod)
    folder = arm_folder(run, arm, SEED)
    plan, vectors = method.plan(run, arm, SEED), method.vectors(run, arm, SEED, folder)
    collator: TrainingCollator = training_collator(plan, run.prompts, vectors)
    tables: dict[str, Floats] = {}
    with untrained(plan, run.llm, vectors) as hybrid:
        tables["before"] = of_groups(gradients(hybrid, collator, samples, config.batch_size))
    alone = None
    with trained(plan, run.llm, run.prompts, vectors, folder) as hybrid:
        tables["after"] = of_groups(gradients(hybrid, collator, samples, config.batch_size))
        if singles:
            one_each = [[sample] for sample in singles]
            alone = similarities(gradients(hybrid, collator, one_each, config.batch_size))
    return tables, alone


def _refuse_no_direction(arm: Arm, cosines: Floats) -> None:
    """Refuse gradients that are zero, or not finite, in all types of modules (ValueError)."""
    if np.isnan(cosines).any():
        raise ValueError(
            f"the gradients of {arm.name} are zero or not finite for some windows, so they have no "
            "direction to compare: leave the arm out, or choose another adapt.precision"
        )


def _pairs(run: Run, rows: Ints, cosines: Floats) -> dict[str, Any]:
    """The most and the least alike pair of rows."""
    first, second = np.triu_indices(len(rows), 1)
    values = cosines[first, second]
    found = {}
    for what, place in (("Most alike", values.argmax()), ("Least alike", values.argmin())):
        pair = (int(rows[first[place]]), int(rows[second[place]]))
        users = [_user(run, row) for row in pair]
        found[what] = {"cosine": float(values[place]), "users": users}
    return found


def _user(run: Run, row: int) -> dict[str, Any]:
    split, titles = run.data.split("train"), run.data.titles
    history = split.histories[row]
    return {
        "user": int(split.user_ids[row]),
        "history": [titles[item] for item in history[history != PADDING]],
        "target": titles[int(split.targets[row])],
    }
