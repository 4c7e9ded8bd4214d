"""The pages of docs/results are those of their JSON, which names no path of a machine."""

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.gradients.report import gradient_page, without_users

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = sorted((DOCS / "results").glob("*.json"))
RUNS = sorted((DOCS / "results" / "experiments").glob("*/results.json"))


def publisher():
    spec = importlib.util.spec_from_file_location("publish", DOCS / "publish.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_page_is_made_from_its_json_alone(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == publisher().page(results)
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_published_gradients_name_no_user_and_make_their_page():
    for path in sorted((DOCS / "results" / "gradients").glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        assert without_users(results) == results
        page = gradient_page(results, f"{path.stem}.png")
        assert path.with_suffix(".md").read_text(encoding="utf-8") == page


def test_gradients_are_published_without_the_results_of_a_run(tmp_path, monkeypatch):
    found = DOCS / "results" / "gradients" / "movielens.json"
    (tmp_path / "run").mkdir()
    shutil.copyfile(found, tmp_path / "run" / "gradients.json")
    publish = publisher()
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    publish.publish(tmp_path / "run")
    made = tmp_path / "gradients" / found.name
    assert json.loads(made.read_text(encoding="utf-8")) == json.loads(
        found.read_text(encoding="utf-8")
    )
    assert made.with_suffix(".png").exists()


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_the_page_of_a_published_run_is_made_from_its_json_and_names_no_user(path):
    text, publish = path.read_text(encoding="utf-8"), publisher()
    results = json.loads(text)
    assert publish.in_one_line(publish.shortened_run(json.loads(text))) == text
    assert (path.parent / "report.md").read_text(encoding="utf-8") == publish.run_page(results)
    assert (path.parent / "plots" / "hit_ratio.png").stat().st_size > 10_000
    assert "user_ids" not in text


@pytest.mark.parametrize(
    "path", [*PUBLISHED, *RUNS], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_a_published_result_names_no_path_of_a_machine(path):
    page = path.parent / "report.md" if path in RUNS else path.with_suffix(".md")
    text = path.read_text(encoding="utf-8") + page.read_text(encoding="utf-8")
    assert not re.findall(
        r"(?<![\w.])(?:/[\w.+-]+){2,}", re.sub(r"https?://\S+|\w+@\d+/\w+", "", text)
    )


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_result_holds_nothing_that_no_page_shows(path):
    text, publish = path.read_text(encoding="utf-8"), publisher()
    assert publish.in_one_line(publish.shortened(json.loads(text))) == text
    assert len(text) < 350_000


QUOTED = re.compile(r"([+-]?\.\d+) \[([+-]?\.\d+), ([+-]?\.\d+)\]")
MADE_UP = "| [demo]"
"""The row of the README that is not of a published study."""


def quoted() -> dict[str, tuple[str, ...]]:
    """Every figure with an interval that prose takes from a published study, by where it stands."""
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    places = {
        "results": text[: text.index("## The data")],
        "pipeline": (DOCS / "pipeline.md").read_text(encoding="utf-8"),
        "README": " ".join(line for line in readme if not line.startswith(MADE_UP)),
    }
    return {
        f"{place}: {found[0]}": found.groups()
        for place, words in places.items()
        for found in QUOTED.finditer(" ".join(words.split()))
    }


def measured(node: Any) -> Iterator[tuple[float, float, float]]:
    """Every figure with its interval in some published JSON; differences in both directions."""
    if isinstance(node, dict):
        value, low, high = (node.get(key) for key in ("value", "low", "high"))
        if value is not None and low is not None and high is not None:
            yield value, low, high
            if "baseline" in node:
                yield -value, -high, -low
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for one in inner:
        yield from measured(one)


def rounds_to(value: float, shown: str) -> bool:
    """Whether a figure is shown so with that many digits."""
    return abs(value - float(shown)) <= 0.5 * 10.0 ** -len(shown.partition(".")[2]) + 1e-9


def test_figures_that_prose_quotes_are_those_of_a_published_study():
    texts = [path.read_text(encoding="utf-8") for path in (DOCS / "results").rglob("*.json")]
    known = {one for text in texts for one in measured(json.loads(text))}
    wrong = [
        where
        for where, shown in quoted().items()
        if not any(all(map(rounds_to, one, shown)) for one in known)
    ]
    assert len(quoted()) > 100 and len(RUNS) > 2 and len(PUBLISHED) > 10
    assert wrong == []
