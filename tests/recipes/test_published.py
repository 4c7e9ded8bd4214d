"""Published figures beside a study's own: what is refused, and what the page says."""

from typing import Any

import pytest

from recipes.published import all_published, published_from
from recipes.report.published import published_sections, standard_errors

CELLS = [{"prepare.ties": "stable"}, {"prepare.ties": "random"}]
ARMS, METRICS = ["popularity", "sasrec"], ["hit_ratio@10/ranking", "mrr/ranking"]
GOOD: dict[str, Any] = {
    "source": "a page",
    "where": {"prepare.ties": "stable"},
    "counts": {"users": 943},
    "figures": {"sasrec": {"hit_ratio@10/ranking": 0.12}},
}


def read(**fields: Any):
    return published_from({**GOOD, **fields}, "a.yaml", CELLS, ARMS, METRICS)


def test_a_section_is_read():
    found = read()
    assert found.figures == GOOD["figures"] and found.where == GOOD["where"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"figures": {"gru4rec": {}}}, "published.figures.gru4rec: the study has no such arm"),
        (
            {"figures": {"sasrec": {"hit_ratio@7/ranking": 0.1}}},
            "figures.sasrec.hit_ratio@7/ranking: the study measures no such metric, but hit",
        ),
        ({"figures": {"sasrec": {"mrr/ranking": 12.3}}}, "mrr/ranking=12.3 is no share"),
        ({"figures": {"sasrec": {"mrr/ranking": float("nan")}}}, "mrr/ranking=nan is no share"),
        ({"figures": {"sasrec": {"mrr/ranking": "high"}}}, "figures"),
        ({"figures": ["sasrec"]}, "figures"),
        ({"where": {}}, r"published.where=\{\} is no cell"),
        ({"where": {"prepare.ties": "drop"}}, "is no cell of this study"),
        ({"counts": {"user": 3}}, "published.counts.user: choose from users, items"),
        ({"counts": {"users": "many"}}, "counts"),
        ({"count": {}}, "published.count: choose from source, figures"),
    ],
)
def test_a_section_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        read(**fields)


def entry(value: float, low: float, high: float, confidence: float = 0.95) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "confidence": confidence}


def test_standard_errors_by_hand():
    # Half of the interval is 1.96 standard errors, so one is .01 here: .03 is three of them.
    ours = entry(0.13, 0.13 - 0.0195996, 0.13 + 0.0195996)
    assert standard_errors(0.10, ours) == pytest.approx(3, abs=1e-4)
    ours = entry(0.13, 0.13 - 0.0067449, 0.13 + 0.0067449, confidence=0.5)
    assert standard_errors(0.15, ours) == pytest.approx(-2, abs=1e-4)
    assert standard_errors(0.15, entry(0.1, 0.1, 0.1)) is None


def test_users_are_counted_once_whatever_the_splits_they_are_in():
    counts = {"users": {"train": 943, "val": 943, "test": 943}, "all_users": 943, "items": 7}
    row = {"varied": GOOD["where"], "arm": "sasrec", "title": "SASRec"}
    metrics = {"hit_ratio@10/ranking": entry(0.13, 0.12, 0.14)}
    results = {
        "published": [{**GOOD, "counts": {"users": 943, "items": 8}}],
        "cells": [{"varied": GOOD["where"], "dataset": {"counts": counts}}],
        "rows": [{**row, "metrics": metrics}],
    }
    page = published_sections(results)
    assert "alike: 943 users, **8 items, here 7**." in page
    assert "0.1200, 0.1300 (+2.0)" in page and "**0.1200" not in page


def test_no_block_one_block_and_several_are_read():
    known = "a.yaml", CELLS, ARMS, METRICS
    assert all_published(None, *known) == ()
    other = {**GOOD, "where": {"prepare.ties": "random"}, "label": "paper", "same_setting": False}
    first, second = all_published([GOOD, other], *known)
    assert all_published(GOOD, *known) == (first,) == (read(),)
    assert (second.label, second.same_setting) == ("paper", False)
    with pytest.raises(ValueError, match="published must consist of fields, not 'a page'"):
        all_published("a page", *known)


def test_figures_of_another_setting_stand_beside_ours_without_standard_errors():
    mrr = {"mrr/ranking": 0.25}
    blocks = [
        {**GOOD, "label": "paper", "same_setting": False, "notes": ["Last rows."]},
        {**GOOD, "source": "a README", "label": "mended", "same_setting": False},
        {"source": "a page", "label": "paper", "same_setting": False, "figures": {"sasrec": mrr}}
        | {"where": {"prepare.ties": "random"}},
    ]
    ours = {"hit_ratio@10/ranking": entry(0.13, 0.12, 0.14), "mrr/ranking": entry(0.3, 0.2, 0.4)}
    rows = [{"arm": "sasrec", "metrics": ours, "varied": cell} for cell in CELLS]
    page = published_sections({"published": blocks, "rows": rows})
    assert page.count("- **paper**: a page") == 1 and "- Last rows." in page
    assert "| prepare.ties | arm | metric | paper | mended | here |" in page
    assert "| stable | sasrec | hit_ratio@10 | 0.1200 | 0.1200 | 0.1300 [0.1200, 0.1400] |" in page
    assert "| random | sasrec | mrr | 0.2500 | – | 0.3000 [0.2000, 0.4000] |" in page
    assert "standard errors" not in page
