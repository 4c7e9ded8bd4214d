"""The command line: `python -m recipes COMMAND EXPERIMENT [--field value ...]`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import get_type_hints

from recipes.bench import BENCHMARKS
from recipes.experiment import PrepareConfig
from recipes.experiment_files import (
    EXPERIMENTS,
    PRESETS,
    SHORT,
    STUDIES,
    parse_experiment,
    parser_for,
    shipped,
)
from recipes.failures import USER_ERRORS, lacks_memory, one_line

STAGES = ("prepare", "recommender", "adapt", "evaluate", "report")
COMMANDS = ("run", *STAGES, "study", "gradients", "audit", "bench")
"""Commands that take a name; `list` takes none."""
HELP = ("--help", "-h")
USAGE = """usage: python -m recipes COMMAND EXPERIMENT [--field value ...]

commands
  run          every stage below, in order; what is done already is skipped
  prepare      raw files -> tables of interactions, items, windows and frozen candidates
  recommender  train windows -> trained networks, and their vectors of users and items
  adapt        prompts and vectors -> one adapter for each arm and seed
  evaluate     arms -> predictions of the evaluated rows, and metrics with intervals
  report       predictions -> results.json, report.md, report.html, plots

  study        NAME|FILE.yaml [--small] [--out DIR]: arms, and whatever else varies, in one table
               ({studies})
  gradients    EXPERIMENT [--groups 8] [--rows 64] [--users 24]: do groups of users agree on a LoRA?
  audit        FILE [--json]: answers that LLaRA's or iLoRA's code wrote, on both denominators
  list         [--json]: datasets, recommenders, methods, experiments, presets, studies, a line each
  bench        NAME: measure speed and memory ({benchmarks})

EXPERIMENT is a shipped name ({experiments}) or a YAML file. `prepare` also takes a dataset's
name that is no experiment's, such as steam-reviews; the tables are then in data/NAME, or --out.

`run`, `study`, `recommender`, `adapt` and `evaluate` take --jobs N: as many processes share their
trainings and predictions, each on its share of the cores. Small models end sooner so.

`--preset NAME` takes the settings of paper or reference ({presets}).
Your own data: `python -m recipes run recommenders --source FILE` (docs/your_data.md).
`python -m recipes run EXPERIMENT --help` lists every field. Short forms: {short}.
"""


def usage() -> str:
    """The text printed for --help, and for an unknown command."""
    return USAGE.format(
        benchmarks=", ".join(BENCHMARKS),
        experiments=", ".join(shipped(EXPERIMENTS)),
        studies=", ".join(shipped(STUDIES)),
        presets=", ".join(shipped(PRESETS)),
        short=", ".join(f"{short} = {long}" for short, long in SHORT.items()),
    )


def run_stages(command: str, name: str, overrides: Sequence[str]) -> None:
    """Run all stages (`run`), or the one stage that the command names."""
    # Parsed before the slow import, so that --help answers quickly.
    jobs, fields = _jobs(overrides)
    experiment = parse_experiment(name, fields)
    from recipes.pipeline import Pipeline

    pipeline = Pipeline.of(experiment, jobs=jobs or 1)
    if command == "run":
        pipeline.run_all()
    else:
        getattr(pipeline, command)()


def prepare_dataset(name: str, overrides: Sequence[str]) -> None:
    """Run `prepare DATASET --protocol P --source DIR --out DIR`, without an experiment."""
    from recipes.checksums import MEMORY, Checksums
    from recipes.data.prepare import prepare
    from recipes.datasets import DATASETS
    from recipes.locking import held

    parser = parser_for(f"prepare {name}")
    parser.add_argument("--out", default=f"data/{name}", help="folder of the tables")
    parser.add_class_arguments(PrepareConfig, skip={"dataset"})
    parser.set_defaults(protocol=DATASETS[name].protocols[0])
    fields = vars(parser.instantiate(parser.parse_args(list(overrides))))
    folder = Path(fields.pop("out"))
    config = replace(PrepareConfig(**fields), dataset=name)
    with held(folder):
        prepare(config, folder, Checksums(folder.with_name(f"{folder.name}-{MEMORY}")))


def run_study(name: str, overrides: Sequence[str]) -> None:
    """Run `study NAME|FILE.yaml --small --out DIR --jobs N`."""
    jobs, rest = _jobs(overrides)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out")
    parser.add_argument("--small", action="store_true")
    own, fields = parser.parse_known_args(rest)
    from recipes import study

    found = study.read_study(name, own.out, fields, small=own.small)
    study.run_study(replace(found, jobs=jobs or found.jobs))


def _jobs(overrides: Sequence[str]) -> tuple[int | None, list[str]]:
    """The value of `--jobs`, and what else was given.

    Raises:
        ValueError: It is no number from 1.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--jobs")
    own, rest = parser.parse_known_args(list(overrides))
    if own.jobs is not None and not (own.jobs.isdecimal() and int(own.jobs)):
        raise ValueError(f"--jobs {own.jobs}: choose a number of processes, 1 or more")
    return None if own.jobs is None else int(own.jobs), rest


def run_gradients(name: str, overrides: Sequence[str]) -> None:
    """Run `gradients EXPERIMENT --groups 8 --rows 64 --users 24 --batch_size 32`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for field in ("groups", "rows", "users", "batch_size"):
        parser.add_argument(f"--{field}", type=int, default=argparse.SUPPRESS)
    try:
        own, fields = parser.parse_known_args(list(overrides))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    experiment = parse_experiment(name, fields)
    from recipes.gradients.run import GradientsConfig
    from recipes.gradients.run import run_gradients as run

    run(experiment, GradientsConfig(**vars(own)))


def run_benchmark(name: str, overrides: Sequence[str]) -> None:
    """Run `bench NAME --rounds 9 --threads 2 ...`.

    Raises:
        ValueError: A name or field is unknown, or the two sides of a benchmark compute different
            things.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"NAME={name!r} is no benchmark; there are {', '.join(BENCHMARKS)}")
    benchmark = import_module(f"recipes.bench.{name}")
    config = get_type_hints(benchmark.run)["config"]
    parser = parser_for(f"bench {name}")
    parser.add_class_arguments(config)
    benchmark.run(config(**vars(parser.instantiate(parser.parse_args(list(overrides))))))


def print_audit(name: str, options: Sequence[str]) -> None:
    """Run `audit FILE [--json]`."""
    from recipes.evaluation.audit import run_audit

    if unknown := [option for option in options if option != "--json"]:
        raise ValueError(f"audit takes a file and --json, not {' '.join(unknown)}")
    print(run_audit(Path(name), as_json="--json" in options))


def run_command(command: str, name: str, overrides: Sequence[str]) -> None:
    """Run one of `COMMANDS`."""
    if command == "bench":
        run_benchmark(name, overrides)
    elif command == "study":
        run_study(name, overrides)
    elif command == "gradients":
        run_gradients(name, overrides)
    elif command == "audit":
        print_audit(name, overrides)
    elif command == "prepare" and name not in shipped(EXPERIMENTS) and is_dataset(name):
        prepare_dataset(name, overrides)
    else:
        run_stages(command, name, overrides)


def is_dataset(name: str) -> bool:
    """Whether `name` is a dataset."""
    from recipes.datasets import DATASETS

    return name in DATASETS


def main(arguments: Sequence[str]) -> int:
    """Run a command; user errors become one line and exit status 2."""
    if list(arguments[:1]) == ["list"] and set(arguments[1:]) <= {"--json"}:
        from recipes.listing import listing

        print(listing(as_json="--json" in arguments))
        return 0
    if len(arguments) > 1 and arguments[0] in COMMANDS and arguments[1] in HELP:
        arguments = HELP[:1]
    if len(arguments) < 2 or arguments[0] not in COMMANDS:
        asked = bool(arguments) and arguments[0] in HELP
        print(usage(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        run_command(arguments[0], arguments[1], arguments[2:])
    except (*USER_ERRORS, MemoryError, RuntimeError) as error:
        if not (isinstance(error, USER_ERRORS) or lacks_memory(error)):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return 130
    return 0


def program() -> int:
    """`main` on a terminal, where a character that it cannot show becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(program())
