"""Reads experiments and studies from YAML, by shipped name or by path.

Every field can be overridden on the command line. `--preset NAME` puts the fields of
`presets/NAME.yaml` over an experiment's, and over these what the file's block `datasets` has for
the experiment's dataset. The run is then named EXPERIMENT-NAME, as its folder is.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from recipes.experiment import Experiment

EXPERIMENTS = Path(__file__).parent / "experiments"
STUDIES = Path(__file__).parent / "studies"
PRESETS = Path(__file__).parent / "presets"
PRESET = "--preset"
SHORT = {
    "--source": "--prepare.source",
    "--protocol": "--prepare.protocol",
    "--llm": "--adapt.llm",
    "--methods": "--adapt.methods",
}
"""Command-line abbreviations of fields."""


def shipped(folder: Path) -> dict[str, str]:
    """The YAML files of a folder: name -> summary, which is the file's first comment line."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for path in sorted(folder.glob("*.yaml"))
    }


def yaml_file(folder: Path, name: str, kind: str) -> Path:
    """Path of the YAML file that a shipped name or a path stands for.

    Raises:
        ValueError: `name` is neither.
    """
    for path in (folder / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    raise ValueError(
        f"{kind.upper()}={name!r} is neither a shipped {kind} ({', '.join(shipped(folder))}) "
        "nor a YAML file"
    )


def parser_for(command: str) -> ArgumentParser:
    """A parser without arguments for `python -m recipes COMMAND`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    prog = f"python -m recipes {command}"
    return ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)


def parse_experiment(name: str, overrides: Sequence[str]) -> Experiment:
    """Read an experiment's YAML and apply command-line overrides."""
    return _parsed(f"run {name}", yaml_file(EXPERIMENTS, name, "experiment"), overrides)


def experiment_from(fields: Mapping[str, Any], overrides: Sequence[str]) -> Experiment:
    """An experiment from the fields that a YAML file would hold, with command-line overrides.

    Raises:
        ValueError: A preset is named, a field is unknown, or a value is impossible.
    """
    if _preset_of(overrides)[0] is not None:
        raise ValueError(
            f"{PRESET} replaces the arms of an experiment, and a study has its own: write the "
            "preset's fields into the study's file"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(yaml.safe_dump(dict(fields), sort_keys=False), encoding="utf-8")
        return _parsed("study", path, overrides)


def _parsed(command: str, path: Path, overrides: Sequence[str]) -> Experiment:
    preset, spelled = _preset_of(_spelled_out(overrides))
    further = (Path(file) for file in _given("--config", spelled))
    for file in (path, *(file for file in further if file.is_file())):
        fields = yaml_fields(file)
        _refuse_no_sections(fields, Experiment)  # errors of the first name the file
        _refuse_no_arms(fields.get("arms"))
    for arms in _given("--arms", spelled):
        _refuse_no_arms(_yaml_value(arms))
    experiment = _read(command, [path], spelled)
    if preset is not None:
        with tempfile.TemporaryDirectory() as folder:
            over = Path(folder) / "preset.yaml"
            fields = _preset_fields(preset, experiment)
            over.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
            experiment = _read(command, [path, over], spelled)
    flags = {argument.partition("=")[0] for argument in spelled}
    if "--adapt.methods" in flags and experiment.arms is not None:
        raise ValueError("--methods has no effect beside `arms`: give --arms, or leave it out")
    return experiment


def _read(command: str, paths: Sequence[Path], arguments: Sequence[str]) -> Experiment:
    """The experiment of some files, a later one over an earlier one, and of arguments over all."""
    parser = parser_for(command)
    parser.add_argument("--config", action="config", help="a further YAML, over the experiment's")
    parser.add_argument(
        PRESET,
        help=f"settings of paper or reference: {', '.join(shipped(PRESETS))}, or a YAML file",
    )
    parser.add_class_arguments(Experiment)
    files = [word for path in paths for word in ("--config", str(path))]
    parsed = vars(parser.instantiate(parser.parse_args([*files, *arguments])))
    for name in ("config", PRESET.removeprefix("--")):
        parsed.pop(name)
    experiment = Experiment(**parsed)
    _refuse_missing(experiment)
    return experiment


def _preset_fields(name: str, experiment: Experiment) -> dict[str, Any]:
    """The fields that a preset puts over an experiment's.

    Raises:
        ValueError: There is no such preset, or it has nothing for the experiment's dataset.
    """
    path = yaml_file(PRESETS, name, "preset")
    fields, dataset = yaml_fields(path), experiment.prepare.dataset
    own = fields.pop("datasets", {dataset: {}})
    if not isinstance(own, Mapping) or not all(isinstance(one, Mapping) for one in own.values()):
        raise ValueError(f"{path}: datasets={own!r} must hold a block of fields for each dataset")
    if dataset not in own:
        raise ValueError(
            f"{PRESET} {name} has no settings for the dataset {dataset!r}; it has some for "
            f"{', '.join(own)}: copy {path}, give it a block for {dataset!r}, and name the copy"
        )
    named = {key: f"{getattr(experiment, key)}-{path.stem}" for key in ("name", "out")}
    fields = merged({**named, **fields}, own[dataset])
    _refuse_no_sections(fields, Experiment)
    return fields


def _preset_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The preset that arguments name, the last one, and the arguments without it.

    Raises:
        ValueError: A preset has no name.
    """
    rest, found, words = [], None, iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != PRESET:
            rest.append(word)
            continue
        found = value if equals else next(words, "")
        if not found or found.startswith("--"):
            raise ValueError(f"{PRESET} has no name: choose one of {', '.join(shipped(PRESETS))}")
    return found, rest


def _refuse_no_sections(fields: Mapping[str, Any], section: type, prefix: str = "") -> None:
    """Refuse a section that is a value, such as `adapt: 3` (ValueError); the parser drops it."""
    for name, hint in get_type_hints(section).items():
        value = fields.get(name)
        if value is None or not is_dataclass(hint):
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"{prefix}{name}={value!r} must be a section of fields with values")
        _refuse_no_sections(value, hint, f"{prefix}{name}.")  # type: ignore[arg-type]


def _refuse_no_arms(arms: Any) -> None:
    """Refuse arms that are words, such as `arms: [lora]`, with what to write (ValueError)."""
    arms = [] if arms is None else arms
    if not isinstance(arms, list) or not all(isinstance(arm, Mapping) for arm in arms):
        raise ValueError(f"arms={arms!r} must be a list of blocks, such as [{{method: ilora}}]")


def _refuse_missing(section: Any, prefix: str = "") -> None:
    """Refuse a field without a value, such as `seeds:` (ValueError); the parser lets it pass."""
    for field, hint in get_type_hints(type(section)).items():
        value = getattr(section, field)
        if is_dataclass(value):
            _refuse_missing(value, f"{prefix}{field}.")
        elif value is None and type(None) not in get_args(hint):
            raise ValueError(f"{prefix}{field} has no value")


class _Once(yaml.SafeLoader):
    """Refuses a field that stands twice in a section, of which YAML would silently drop one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, name in enumerate(names):
            if name in names[:place]:
                mark = node.value[place][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"{name} stands twice", problem_mark=mark)
        return node


def yaml_fields(path: Path) -> dict[str, Any]:
    """The fields of a YAML file.

    Raises:
        ValueError: The file is no YAML, does not consist of named fields, or has one twice.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Once)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must consist of fields with values, not {found!r}")
    return found


def _given(option: str, arguments: Sequence[str]) -> list[str]:
    """The values that an option is given, after a blank or an equals sign."""
    apart = [value for flag, value in pairwise(arguments) if flag == option]
    joined = (one.partition("=") for one in arguments)
    return apart + [value for flag, equals, value in joined if flag == option and equals]


def _yaml_value(text: str) -> Any:
    """What a word of the command line stands for; None for what is no YAML, which is told later."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    spelled = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        spelled.append(f"{SHORT.get(flag, flag)}{equals}{value}")
    return spelled


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the fields of `over` in place of its own; nested sections are merged."""
    result = dict(base)
    for name, value in over.items():
        mine = result.get(name)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            value = merged(mine, value)
        result[name] = value
    return result


def nested(field: str, value: Any) -> dict[str, Any]:
    """A dotted field and its value as nested sections: `a.b`, 1 -> {a: {b: 1}}."""
    head, dot, rest = field.partition(".")
    return {head: nested(rest, value) if dot else value}
