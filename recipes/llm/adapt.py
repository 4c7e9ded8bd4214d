"""The stage `adapt`: one trained adapter for each method and seed, on equal terms.

RUN/adapt/stand-in/           the small Llama, if `adapt.llm` is `stand-in`
RUN/adapt/{method}-seed{n}/   a trained adapter, see `train_adapter.py`

Each of these folders is a stage of its own: an interrupted run resumes with the folder, and inside
it with the checkpoint, at which it stopped. All methods of a seed see the same prompts in the same
order, the same curriculum, the same dropout stream, and start from the same projector.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.artifacts import Record, fingerprint, read_record, run_stage
from recipes.experiment import AdaptConfig, Method
from recipes.llm.checkpoints import checkpoint_folder
from recipes.llm.methods import check_methods
from recipes.llm.stand_in import make_stand_in
from recipes.llm.train_adapter import Inputs, train_adapter

STAND_IN = "stand-in"


def adapt(config: AdaptConfig, run: Path, seeds: int) -> Record:
    """Train an adapter for each method and each seed 0 .. seeds-1.

    Args:
        config: The stage's.
        run: The run's directory, with the stages `prepare` and `recommender` done.
        seeds: How many.

    Raises:
        FileNotFoundError: An earlier stage is missing, or there is no such language model.
        ValueError: A field of `config` has an impossible value, or the recommender was trained on
            other data than `prepare` holds now.
    """
    check_config(config, seeds)
    records = {name: read_record(run / name, name) for name in ("prepare", "recommender")}
    check_inputs(records["recommender"], run, "recommender")

    def work() -> None:
        inputs = Inputs.load(run)
        read = dict(records)
        if config.llm == STAND_IN:
            read[STAND_IN] = _stand_in(config, run, inputs, records["prepare"])
        for seed in range(seeds):
            for method in config.methods:
                _adapter(config, method, seed, run, inputs, read)

    return run_stage("adapt", run / "adapt", {**asdict(config), "seeds": seeds}, records, work)


def check_config(config: AdaptConfig, seeds: int) -> None:
    """Refuse impossible values before anything is loaded.

    Raises:
        ValueError: Which field, its value and the remedy.
    """
    check_methods(config)
    at_least_one = {
        "seeds": seeds,
        "adapt.prompt_history": config.prompt_history,
        "adapt.max_steps": config.max_steps,
        "adapt.batch_size": config.batch_size,
        "adapt.gradient_accumulation_steps": config.gradient_accumulation_steps,
        "adapt.save_steps": config.save_steps,
        "adapt.logging_steps": config.logging_steps,
        "adapt.stand_in.max_steps": config.stand_in.max_steps,
        "adapt.stand_in.batch_size": config.stand_in.batch_size,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if config.batch_size % config.gradient_accumulation_steps:
        raise ValueError(
            f"adapt.batch_size={config.batch_size} counts the prompts of an optimiser step: make "
            "it a multiple of adapt.gradient_accumulation_steps="
            f"{config.gradient_accumulation_steps}"
        )


def check_inputs(record: Record, run: Path, stage: str) -> None:
    """Refuse a stage whose inputs have been made anew since.

    Args:
        record: What was made.
        run: The run's directory, where its inputs are.
        stage: The command that makes it again.

    Raises:
        ValueError: An input is not the one that was read: rows and item ids would not match.
    """
    for name in ("prepare", "recommender"):
        known = record.inputs.get(name)
        if known is not None and known != read_record(run / name, name).fingerprint:
            raise ValueError(
                f"{run / name} has changed since `{record.stage}` was made from it: run "
                f"`python -m recipes {stage}` again"
            )


def llm_path(config: AdaptConfig, run: Path) -> str:
    """Where the language model is: a name or a path."""
    return str(run / "adapt" / STAND_IN) if config.llm == STAND_IN else config.llm


def adapter_folder(run: Path, method: Method, seed: int) -> Path:
    """Where a trained adapter is."""
    return run / "adapt" / f"{method}-seed{seed}"


def _stand_in(config: AdaptConfig, run: Path, inputs: Inputs, prepared: Record) -> Record:
    folder = run / "adapt" / STAND_IN
    num_candidates = inputs.data.split("train").candidates.shape[1]
    settings = {
        **asdict(config.stand_in),
        "prompt_history": config.prompt_history,
        "num_candidates": num_candidates,
        "stand_in": True,
    }
    read = {"prepare": prepared}
    checkpoints = _checkpoints(folder, STAND_IN, settings, read)

    def work() -> None:
        make_stand_in(
            config.stand_in,
            inputs.data.titles,
            prompt_history=config.prompt_history,
            num_candidates=num_candidates,
            folder=folder,
            checkpoints=checkpoints,
            logging_steps=config.logging_steps,
            save_steps=config.save_steps,
        )

    return run_stage(STAND_IN, folder, settings, read, work)


def _adapter(
    config: AdaptConfig,
    method: Method,
    seed: int,
    run: Path,
    inputs: Inputs,
    read: dict[str, Record],
) -> Record:
    folder = adapter_folder(run, method, seed)
    # An adapter does not depend on which others are trained; the stand-in's record is an input.
    settings = {
        name: value for name, value in asdict(config).items() if name not in ("methods", "stand_in")
    }
    settings |= {"method": method, "seed": seed}
    stage = f"adapt {method} seed {seed}"
    checkpoints = _checkpoints(folder, stage, settings, read)
    llm = llm_path(config, run)

    def work() -> None:
        train_adapter(config, method, seed, inputs, llm=llm, folder=folder, checkpoints=checkpoints)

    return run_stage(stage, folder, settings, read, work)


def _checkpoints(
    folder: Path, stage: str, settings: dict[str, Any], read: dict[str, Record]
) -> Path:
    inputs = {name: record.fingerprint for name, record in read.items()}
    return checkpoint_folder(folder, fingerprint(stage, settings, inputs))
