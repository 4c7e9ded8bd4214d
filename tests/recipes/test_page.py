"""The report as one HTML page, and the users that its explorer shows."""

import json
import re

import numpy as np
import pytest

from recipes.artifacts import read_table
from recipes.experiment import AdaptConfig, EvaluateConfig, Experiment, PrepareConfig
from recipes.pipeline import Pipeline
from recipes.report import explorer
from recipes.report.explorer import _rounded, explored
from recipes.report.page import page

pytestmark = pytest.mark.plots

PNG = b"\x89PNG\r\n\x1a\n"


def data_of(text: str):
    """What the page's data element holds, read as a browser reads it: up to the first end tag."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def finished(folder, **evaluate) -> Pipeline:
    made = Pipeline.of(
        Experiment(
            name="rings & <things>",
            out=str(folder),
            prepare=PrepareConfig(dataset="ring", protocol="chronological", candidate_draws=2),
            adapt=AdaptConfig(methods=["markov", "co-occurrence"]),
            evaluate=EvaluateConfig(**{"rows": "last", "bootstrap_samples": 100, **evaluate}),
        )
    )
    made.run_all()
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return finished(folder), (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_holds_the_report_and_needs_no_other_file(run) -> None:
    made, text = run
    assert "<title>rings &amp; &lt;things&gt;</title>" in text
    assert "<h2>What was run</h2>" in text and "<td>Popularity</td>" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == len(list((made.run.folder / "plots").glob("*.png")))
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "{{" not in text and "url(" not in text and "@import" not in text


def test_the_explorer_shows_the_first_draw_of_each_row_as_every_arm_scored_it(run) -> None:
    made, text = run
    shown = data_of(text)
    assert shown == json.loads(json.dumps(explored(made.run, made.arms)))
    table = read_table(made.run.folder / "predictions.parquet")
    split = made.run.data.split("test")
    assert [arm["name"] for arm in shown["arms"]] == ["popularity", "markov", "co-occurrence"]
    for arm in shown["arms"]:
        own = table[(table["method"] == arm["name"]) & (table["draw"] == 0)].reset_index()
        assert len(own) == len(shown["rows"]) == len(arm["scores"])
        for index, row in enumerate(shown["rows"]):
            number = row["row"]
            assert (row["user"], row["target"]) == (own["user_id"][index], own["target"][index])
            assert row["candidates"] == split.candidates[number].tolist()
            length = int(split.history_lengths[number])
            assert row["history"] == split.histories[number][-length:].tolist()
            scores = dict(zip(row["candidates"], arm["scores"][index], strict=True))
            better = sum(score > scores[row["target"]] for score in scores.values())
            assert better == own["better"][index]
        assert "answers" not in arm and "gates" not in arm
    items = {item for row in shown["rows"] for item in row["history"] + row["candidates"]}
    assert shown["titles"] == {str(item): made.run.data.titles[item] for item in items}


def test_a_row_with_a_nan_is_shown_as_such_and_loses_no_page(run, monkeypatch) -> None:
    made, _ = run
    rows = [np.array([0.5, np.nan]), np.array([np.inf, -np.inf]), np.array([0.25, 1 / 3])]
    assert _rounded(rows) == [None, [1e38, -1e38], [0.25, 0.333333]]
    assert json.loads(json.dumps(_rounded(rows), allow_nan=False)) == _rounded(rows)
    count = len(read_table(made.run.folder / "predictions.parquet"))
    gates = np.full((count, 2), 0.5)
    gates[0] = np.nan
    monkeypatch.setattr(explorer, "_gates", lambda folder: gates)
    shown = explored(made.run, made.arms)
    assert shown["arms"][0]["gates"][:2] == [None, [0.5, 0.5]]
    assert data_of(page("t", "", {}, shown))["arms"][0]["gates"][0] is None


def test_a_page_of_the_whole_catalogue_has_no_explorer(tmp_path) -> None:
    made = finished(tmp_path, candidates="catalogue")
    assert explored(made.run, made.arms) is None
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="explorer"' not in text and data_of(text) is None


def test_no_title_ends_the_data_or_becomes_markup() -> None:
    titles = {"0": "</script><script>alert(1)</script>", "1": "<!-- {{REPORT}} \u2028 \\1"}
    text = page("t", "# heading\n\n![a plot](plots/a.png)", {"a.png": PNG}, {"titles": titles})
    assert data_of(text) == {"titles": titles}
    assert "alert(1)</script>" not in text
    assert text.count("<h1>heading</h1>") == 1
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in text


def test_a_plot_of_any_name_is_found_and_html_within_a_line_is_text() -> None:
    report = "a <b>c</b> <img src=x>\n\n![a](plots/Größe.png)\n\n<details><summary>s</summary>\n\nd"
    text = page("t", report, {"Größe.png": PNG}, None)
    assert "a &lt;b&gt;c&lt;/b&gt; &lt;img src=x&gt;" in text
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in text
    assert "<details><summary>s</summary>" in text and "<p>d</p>" in text
