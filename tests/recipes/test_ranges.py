"""Numbers are held against the ranges beside their fields, before any work."""

import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from recipes.experiment import Experiment, PrepareConfig
from recipes.pipeline import Pipeline
from recipes.ranges import Count, Dropout, Range, Rate, Seed, check_ranges

MOST_SEEDS = 2**32 - 1


@dataclass
class Inner:
    rate: Rate = 0.1


@dataclass
class Outer:
    count: Count = 3
    seed: Seed = 0
    dropout: Dropout = 0.0
    limit: Annotated[int, Range(2)] | None = None
    ks: Annotated[list[Count], Range(1)] = field(default_factory=lambda: [1, 3])
    names: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)


RIGHT = {
    "the least": {"count": 1, "seed": 0, "dropout": 0.0, "limit": 2, "ks": [1]},
    "the most": {"seed": MOST_SEEDS, "dropout": math.nextafter(1, 0), "inner": Inner(1e300)},
    "a whole number for a float": {"dropout": 0, "inner": Inner(1)},
    "no limit": {"limit": None},
}
WRONG = {
    "count=0 must be at least 1": {"count": 0},
    "count=-1 must be at least 1": {"count": -1},
    "count=2.0 must be a whole number, at least 1": {"count": 2.0},
    "count=True must be a whole number, at least 1": {"count": True},
    "count='3' must be a whole number, at least 1": {"count": "3"},
    "count=None must be a whole number, at least 1": {"count": None},
    f"seed=-1 must be in [0, {MOST_SEEDS}]": {"seed": -1},
    f"seed={MOST_SEEDS + 1} must be in [0, {MOST_SEEDS}]": {"seed": MOST_SEEDS + 1},
    "dropout=1.0 must be in [0, 1)": {"dropout": 1.0},
    "dropout=nan must be in [0, 1)": {"dropout": math.nan},
    "dropout=False must be a number, in [0, 1)": {"dropout": False},
    "count=2147483648 must be at most 2147483647": {"count": 2**31},
    "limit=1 must be at least 2": {"limit": 1},
    "ks=[] must name at least 1": {"ks": []},
    "ks, which holds 0, must be at least 1": {"ks": [1, 0]},
    "ks, which holds True, must be a whole number, at least 1": {"ks": [True]},
    "inner.rate=0 must be above 0": {"inner": Inner(0)},
    "inner.rate=inf must be above 0": {"inner": Inner(math.inf)},
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_number_in_its_range_passes(name: str) -> None:
    check_ranges(Outer(**RIGHT[name]))


@pytest.mark.parametrize("message", WRONG)
def test_a_number_outside_its_range_is_refused_by_name_value_and_range(message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_ranges(Outer(**WRONG[message]), "")
    assert str(caught.value) == message
    with pytest.raises(ValueError, match="part.") as caught:
        check_ranges(Outer(**WRONG[message]), "part.")
    assert str(caught.value) == f"part.{message}"


def numbers(section: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every numeric field of a configuration: its dotted name and its annotation."""
    hints = get_type_hints(type(section), include_extras=True)
    found = []
    for spec in fields(section):
        value = getattr(section, spec.name)
        if is_dataclass(value):
            found += numbers(value, f"{prefix}{spec.name}.")
        elif any(kind in str(hints[spec.name]) for kind in ("int", "float")):
            found.append((f"{prefix}{spec.name}", hints[spec.name]))
    return found


NUMBERS = dict(numbers(Experiment()))


def with_value(section: Any, name: str, value: Any) -> Any:
    head, dot, rest = name.partition(".")
    return replace(
        section, **{head: with_value(getattr(section, head), rest, value) if dot else value}
    )


def test_every_number_of_an_experiment_has_a_range() -> None:
    assert len(NUMBERS) > 45
    for name, hint in NUMBERS.items():
        annotated = [hint, *get_args(hint)]
        assert any(get_origin(one) is Annotated for one in annotated), name


@pytest.mark.parametrize("name", NUMBERS)
def test_impossible_values_of_every_number_are_refused_before_a_folder_is_made(
    name: str, tmp_path: Path
) -> None:
    whole = "float" not in str(NUMBERS[name])
    wrong = [-1, math.nan, math.inf, True, *([2**80] if "seed" in name else [])]
    for value in [*wrong, *([2.5] if whole else [])]:
        given = [value] if "list" in str(NUMBERS[name]) else value
        experiment = with_value(Experiment(out=str(tmp_path / "run")), name, given)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            Pipeline.of(experiment)
    assert not list(tmp_path.iterdir())


CROSSED = {
    "recommender.min_history=4 leaves no row": {"recommender.min_history": 4},
    "adapt.min_history=4 leaves no row": {"adapt.min_history": 4},
    "evaluate.min_history=4 leaves no row": {"evaluate.min_history": 4},
    "evaluate.ks=[1, 1] names a cut-off twice": {"evaluate.ks": [1, 1]},
    "evaluate.ks holds [21]": {"evaluate.ks": [1, 21]},
    "adapt.stand_in.hidden_size=12 must be a multiple of twice": {"adapt.stand_in.hidden_size": 12},
    "recommender.num_heads=3 does not divide": {"recommender.num_heads": 3},
    "adapt.batch_size=32 counts": {"adapt.gradient_accumulation_steps": 5},
}


@pytest.mark.parametrize("message", CROSSED)
def test_numbers_that_do_not_go_together_are_refused_by_name(message: str) -> None:
    experiment = Experiment(prepare=PrepareConfig(protocol="chronological", max_history=3))
    for name, value in CROSSED[message].items():
        experiment = with_value(experiment, name, value)
    with pytest.raises(ValueError) as caught:
        Pipeline.of(experiment)
    assert message in str(caught.value)
