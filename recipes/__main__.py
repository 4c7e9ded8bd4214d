"""The command line: `python -m recipes COMMAND EXPERIMENT [--field value ...]`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from recipes.bench import BENCHMARKS
from recipes.experiment import Dataset, Experiment, PrepareConfig
from recipes.pipeline import STAGES, run_all

SHIPPED = Path(__file__).parent / "experiments"
SHORT = {
    "--source": "--prepare.source",
    "--protocol": "--prepare.protocol",
    "--llm": "--adapt.llm",
    "--methods": "--adapt.methods",
}
USAGE = """usage: python -m recipes COMMAND EXPERIMENT [--field value ...]

commands
  run          every stage below, in order; what is done already is skipped
  prepare      raw files -> interactions, items, examples, frozen candidates
  recommender  train windows -> user representations and item embeddings
  adapt        prompts and vectors -> one adapter for each method and seed
  evaluate     adapters -> predictions on the frozen candidates
  report       predictions -> results.json, report.md, plots

  bench        NAME: measure speed and memory ({benchmarks})

EXPERIMENT is a shipped name ({shipped}) or a YAML file. `prepare` also takes a dataset
({datasets}); its --out is then the folder of the tables.

`python -m recipes run EXPERIMENT --help` lists every field. Short forms: {short}.
"""


def usage() -> str:
    return USAGE.format(
        benchmarks=", ".join(BENCHMARKS),
        shipped=", ".join(shipped_names()),
        datasets=", ".join(get_args(Dataset)),
        short=", ".join(f"{short} = {long}" for short, long in SHORT.items()),
    )


def shipped_names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def experiment_file(name: str) -> Path:
    """The YAML of a shipped name or path.

    Raises:
        ValueError: There is neither.
    """
    for path in (SHIPPED / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    raise ValueError(
        f"EXPERIMENT={name!r} is neither a shipped experiment ({', '.join(shipped_names())}) "
        "nor a YAML file"
    )


def parse_experiment(name: str, overrides: Sequence[str]) -> Experiment:
    """Read an experiment's YAML and apply command-line overrides."""
    parser = _parser(f"run {name}")
    parser.add_argument("--config", action="config", help="a further YAML, over the experiment's")
    parser.add_class_arguments(Experiment)
    arguments = ["--config", str(experiment_file(name)), *_spelled_out(overrides)]
    parsed = vars(parser.instantiate(parser.parse_args(arguments)))
    return Experiment(**{field: value for field, value in parsed.items() if field != "config"})


def _parser(command: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return ArgumentParser(prog=f"python -m recipes {command}", exit_on_error=False)


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    spelled = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        spelled.append(f"{SHORT.get(flag, flag)}{equals}{value}")
    return spelled


def prepare_dataset(dataset: Dataset, overrides: Sequence[str]) -> None:
    """`prepare DATASET --protocol P --source DIR --out DIR`."""
    from recipes.data.prepare import prepare

    parser = _parser(f"prepare {dataset}")
    parser.add_argument("--out", default=f"data/{dataset}", help="folder of the tables")
    parser.add_class_arguments(PrepareConfig, skip={"dataset"})
    fields = vars(parser.instantiate(parser.parse_args(list(overrides))))
    folder = Path(fields.pop("out"))
    prepare(replace(PrepareConfig(**fields), dataset=dataset), folder)


def run_benchmark(name: str, overrides: Sequence[str]) -> None:
    """`bench NAME --rounds 9 --threads 2 ...`.

    Raises:
        ValueError: An unknown name or field, or the two sides of a benchmark differ.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"NAME={name!r} is no benchmark; there are {', '.join(BENCHMARKS)}")
    benchmark = import_module(f"recipes.bench.{name}")
    config = get_type_hints(benchmark.run)["config"]
    parser = _parser(f"bench {name}")
    parser.add_class_arguments(config)
    benchmark.run(config(**vars(parser.instantiate(parser.parse_args(list(overrides))))))


def main(arguments: Sequence[str]) -> int:
    """Run a command; user errors become one line and exit status 2."""
    if len(arguments) < 2 or arguments[0] not in {*STAGES, "run", "bench"}:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(usage(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    command, name, overrides = arguments[0], arguments[1], arguments[2:]
    try:
        if command == "bench":
            run_benchmark(name, overrides)
            return 0
        if command == "prepare" and name in get_args(Dataset):
            prepare_dataset(name, overrides)  # type: ignore[arg-type]
            return 0
        experiment = parse_experiment(name, overrides)
        (run_all if command == "run" else STAGES[command])(experiment)
    except (ArgumentError, ValueError, FileNotFoundError) as error:
        print(f"error: {getattr(error, 'message', error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
