"""The audit of answers that a reference implementation wrote, against counts made by hand."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

from recipes.__main__ import main
from recipes.evaluation.audit import Answered, audit, read_answers
from recipes.evaluation.statistics import wilson_interval

FILMS = ["Alien", "Aliens", "Heat", "Don't Look Now"]
ROWS = [
    ("Heat", "Heat"),  # right by both rules
    (" the film HEAT, of course", "Heat"),  # right as a part only
    ("Aliens", "Aliens"),  # right, and voided: Alien is a part of it
    ("Alien", "Aliens"),  # wrong, valid by both
    ("don't look", "Don't Look Now"),  # cut short
    ("", "Heat"),
    ("Fargo", "Heat"),
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file as LLaRA's and iLoRA's code write it: a frame of lists, by `to_csv`."""
    path = tmp_path / "test.csv"
    answers, targets = zip(*ROWS, strict=True)
    frame = pd.DataFrame({"generate": answers, "real": targets, "cans": [FILMS] * len(ROWS)})
    frame.to_csv(path)
    return path


def test_both_denominators_and_both_rules_are_counted(written: Path) -> None:
    found = audit(read_answers(written))
    counted = {share.name: (share.count, share.of) for share in found.shares}
    assert list(counted.values()) == [
        (3, 7),
        (2, 7),
        (2, 3),
        (3, 7),
        (2, 7),
        (2, 3),
        (1, 7),
        (5, 7),
    ]
    hit = found.shares[1]
    assert (hit.low, hit.high) == wilson_interval(2, 7, 0.95)
    assert found.invalid == {
        "several candidates' titles stand in the answer": 1,
        "the beginning of a candidate's title (cut short)": 1,
        "empty": 1,
        "names no candidate": 1,
    }
    assert found.notes == ()


def test_the_figures_of_a_public_thread_are_one_count_on_two_denominators() -> None:
    """LLaRA's issue 19: `metric` .2632, `test_hr` .3906, `test_prediction_valid` .6737."""
    rows = [Answered("b", "b", ("a", "b"))] * 25 + [Answered("a", "b", ("a", "b"))] * 39
    found = audit([*rows, *[Answered("c", "b", ("a", "b"))] * 31]).shares
    assert [round(share.value or 0, 4) for share in found[:3]] == [0.6737, 0.2632, 0.3906]


def test_an_empty_title_and_an_absent_target_are_told() -> None:
    rows = [Answered("Heat", "Heat", ("", "Heat")), Answered("Heat", "Fargo", ("Heat", "Alien"))]
    found = audit(rows)
    assert found.invalid == {"an empty title among the candidates, which stands in every answer": 1}
    assert found.notes == (
        "in 1 rows the target is not among the candidates, so no answer is right",
    )
    assert found.shares[6].count == 1


def test_no_valid_answer_leaves_the_ratio_of_valid_undefined() -> None:
    found = audit([Answered("x", "a", ("a", "b"))] * 120)
    assert found.shares[2].value is None
    assert "undefined (0 of 0)" in found.as_text()
    assert "LastFM's test set has 122" in found.notes[0]


def test_the_command_prints_text_and_json(written: Path, capsys) -> None:
    assert main(["audit", str(written)]) == 0
    assert "HitRatio@1 of valid, substring rule (`test_hr`)" in capsys.readouterr().out
    assert main(["audit", str(written), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == len(ROWS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generate,real\na,b\n", "has no column cans"),
        ("", "has no column generate, real, cans"),
        ("generate,real,cans\n", "has no rows"),
        ("generate,real,cans\na,b\n", "line 2 ends before its last column"),
        ('generate,real,cans\na,b,"[a, b]"\n', "line 2: cans='[a, b]' is not a list of titles"),
        ("generate,real,cans\na,b,[]\n", "line 2: cans='[]' is not a list of titles"),
        ('generate,real,cans\na,b,"[1, 2]"\n', "is not a list of titles"),
        ("generate,real,cans\na,b,['a' 'b']\n", "is not a list of titles in quotes, with commas"),
        ("generate,real,cans\na,b,\"['a',\n 'b' 'c']\"\n", "line 3: cans="),
        ("generate,real,cans\na,b,7\n", "line 2: cans='7' is not a list"),
    ],
    ids=[
        "no cans",
        "nothing",
        "no rows",
        "cut",
        "no quotes",
        "empty list",
        "numbers",
        "an array of numpy",
        "a comma is missing",
        "a number",
    ],
)
def test_another_format_is_refused_by_file_and_line(text, message, tmp_path, capsys) -> None:
    path = tmp_path / "answers.csv"
    path.write_text(text)
    assert main(["audit", str(path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {path}") and message in told


def test_titles_of_any_quotes_and_marks_are_read(tmp_path) -> None:
    titles = ['It\'s a "Wonderful" Life', "a, b", "#1 'x' 'y'", "line\nend", "Amélie\u2028", "\\"]
    path = tmp_path / "answers.csv"
    frame = pd.DataFrame({"generate": titles, "real": titles, "cans": [titles] * len(titles)})
    frame.to_csv(path)
    assert [row.candidates for row in read_answers(path)] == [tuple(titles)] * len(titles)


def test_other_arguments_and_other_files_are_refused(tmp_path, capsys) -> None:
    assert main(["audit", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    path = tmp_path / "latin.csv"
    path.write_bytes("generate,real,cans\né,b,\"['b']\"\n".encode("latin-1"))
    assert main(["audit", str(path)]) == 2
    assert "is not in UTF-8" in capsys.readouterr().err
    assert main(["audit", str(path), "--yaml"]) == 2
    assert "audit takes a file and --json, not --yaml" in capsys.readouterr().err


def test_the_page_of_published_figures_is_current() -> None:
    source = Path(__file__).parents[2] / "docs" / "published.py"
    spec = importlib.util.spec_from_file_location("published", source)
    assert spec is not None and spec.loader is not None
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    assert published.page() == published.PAGE.read_text(encoding="utf-8")
    (ours,) = (one for one in published.FIGURES if one.system == "iLoRA")
    assert ours.of_all(1) == pytest.approx(0.9891 * 0.5275)
    assert "-4.7 % (LastFM), +15.3 % (MovieLens), +4.0 % (Steam):\n  +4.9 % in" in published.page()
