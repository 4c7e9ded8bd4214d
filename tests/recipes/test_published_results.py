"""The pages of docs/results are those of their JSON, which names no path of a machine."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from recipes.gradients.report import gradient_page, without_users

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = sorted((DOCS / "results").glob("*.json"))


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


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_result_names_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8") + path.with_suffix(".md").read_text(encoding="utf-8")
    assert not re.findall(
        r"(?<![\w.])(?:/[\w.+-]+){2,}", re.sub(r"https?://\S+|\w+@\d+/\w+", "", text)
    )


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_result_holds_nothing_that_no_page_shows(path):
    text, publish = path.read_text(encoding="utf-8"), publisher()
    assert publish.in_one_line(publish.shortened(json.loads(text))) == text
    assert len(text) < 350_000
