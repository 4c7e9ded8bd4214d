import json
import statistics

import pytest
import torch

from recipes.__main__ import main
from recipes.bench import evaluation, measure
from recipes.bench.evaluation import EvaluationConfig
from recipes.bench.measure import BenchConfig, Figure, compare, exact, interleaved, publish, table
from recipes.bench.models import Shape

TINY = Shape(hidden_size=16, intermediate_size=16, layers=1, heads=2, vocabulary=300)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------ the arithmetic

TIMES = {"own": [2.0, 3.0, 1.0, 8.0, 5.0], "other": [4.0, 4.0, 4.0, 4.0, 10.0]}


def test_a_ratio_is_the_median_over_rounds_and_not_the_ratio_of_medians():
    figure = compare("step", TIMES, "own", "other")
    ratios = [0.5, 0.75, 0.25, 2.0, 0.5]  # round by round
    assert figure.ratio == statistics.median(ratios) == 0.5
    assert figure.ratio != 3.0 / 4.0
    assert [figure.low, figure.high] == [0.375, 1.375]
    assert figure.seconds == {"own": 3.0, "other": 4.0}
    assert figure.against == "other"


def test_a_speed_up_is_the_ratio_turned_over_in_each_round():
    figure = compare("step", TIMES, "own", "other", target=2.0, at_least=True)
    assert figure.ratio == 2.0  # of 2, 4/3, 4, 1/2, 2
    assert figure.low == pytest.approx((0.5 + 4 / 3) / 2)
    assert figure.high == 3.0
    assert figure.met is True


@pytest.mark.parametrize(
    ("ratio", "target", "at_least", "met"),
    [
        (0.85, 0.85, False, True),
        (0.86, 0.85, False, False),
        (5.0, 5.0, True, True),
        (4.9, 5.0, True, False),
        (4.9, None, True, None),
    ],
)
def test_a_target_is_an_upper_bound_unless_it_is_a_lower_one(ratio, target, at_least, met):
    figure = Figure("a", "b", ratio, ratio, ratio, {}, target, at_least)
    assert figure.met is met


def test_a_target_by_quartile_is_missed_when_the_whole_spread_lies_beyond():
    at_most = [
        compare("step", TIMES, "own", "other", bound, by_quartile=True) for bound in (0.4, 0.3)
    ]
    assert [figure.met for figure in at_most] == [True, False]  # [0.375, 1.375]
    at_least = [
        compare("step", TIMES, "own", "other", bound, at_least=True, by_quartile=True)
        for bound in (2.9, 3.1)
    ]
    assert [figure.met for figure in at_least] == [True, False]  # [0.917, 3]


def test_an_exact_ratio_has_no_spread():
    figure = exact("bytes", "other", 0.5, 0.6)
    assert (figure.low, figure.ratio, figure.high, figure.met) == (0.5, 0.5, 0.5, True)


def test_sides_with_another_number_of_rounds_are_refused():
    with pytest.raises(ValueError, match="zip"):
        compare("step", {"own": [1.0, 2.0], "other": [1.0]}, "own", "other")


def test_each_round_runs_every_side_once_in_turning_order_after_one_unmeasured_run(monkeypatch):
    clock, ran = [0.0], []

    def side(name, seconds):
        def run():
            ran.append(name)
            clock[0] += seconds

        return run

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure.time, "process_time", lambda: 10 * clock[0])
    sides = {"a": side("a", 1.0), "b": side("b", 2.0)}
    assert interleaved(sides, rounds=3) == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert "".join(ran) == "ab" + "ab" + "ba" + "ab"
    assert interleaved(sides, rounds=3, clock="cpu") == {"a": [10.0] * 3, "b": [20.0] * 3}


def test_the_table_shows_spread_bound_and_whether_it_is_met():
    figures = [
        compare("step", TIMES, "own", "other", 0.4),
        compare("ranking", TIMES, "own", "other", 2, at_least=True),
        exact("bytes", "other", 0.5),
    ]
    assert table("name", figures).splitlines()[4:] == [
        "| step | other | 0.500 [0.375, 1.375] | <= 0.4 | no |",
        "| ranking | other | 2.000 [0.917, 3.000] | >= 2 | yes |",
        "| bytes | other | 0.500 |  |  |",
    ]


def test_what_is_published_is_printed_and_written(tmp_path, capsys):
    config = BenchConfig(rounds=3, threads=1, out=tmp_path / "deep" / "x.json")
    path = publish("name", config, [exact("bytes", "other", 0.5, 0.6)], {"note": 7})
    found = json.loads(path.read_text())
    assert (found["benchmark"], found["notes"]) == ("name", {"note": 7})
    assert found["config"]["rounds"] == 3
    assert found["environment"]["threads"] == 1
    assert [(row["ratio"], row["met"]) for row in found["figures"]] == [(0.5, True)]
    assert capsys.readouterr().out == table("name", [exact("bytes", "other", 0.5, 0.6)]) + (
        "\nnote: 7\n"
    )


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing"],
            "error: NAME='nothing' is no benchmark; there are adapters, forms,",
        ),
        (["evaluation", "--rounds", "2"], "error: rounds=2 is too few for a spread: use 3 or more"),
        (["evaluation", "--threads", "0"], "error: threads=0 must be positive"),
        (["evaluation", "--nothing", "1"], "error: "),
    ],
)
def test_a_wrong_name_or_field_is_one_line_and_exit_status_2(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


# ------------------------------------------------------------------ ranking, generation, data


def tiny(tmp_path) -> EvaluationConfig:
    return EvaluationConfig(
        rounds=3,
        threads=1,
        out=tmp_path / "evaluation.json",
        shape=TINY,
        stand_in=TINY,
        titles=30,
        candidates=3,
        history=4,
        generated=4,
        batch=2,
        max_new_tokens=2,
        trained=2,
    )


def test_the_benchmark_of_evaluation_has_its_three_rows(tmp_path, capsys):
    ranking, generation, training = evaluation.run(tiny(tmp_path))
    assert (ranking.target, ranking.at_least) == (5.0, True)
    assert (generation.target, generation.at_least) == (None, True)
    assert (training.target, training.at_least) == (0.03, False)
    assert 0 < training.ratio < 1
    assert all(figure.seconds[figure.against] > 0 for figure in (ranking, generation, training))
    notes = json.loads((tmp_path / "evaluation.json").read_text())["notes"]
    assert notes["largest difference of scores"] < 1e-4
    assert notes["share of equal answers"] == 1.0
    assert "| ranking 3 candidates, times faster | full prompts |" in capsys.readouterr().out


def test_scores_that_differ_are_no_benchmark(tmp_path, monkeypatch):
    right = evaluation.answer_log_probs
    monkeypatch.setattr(
        evaluation, "answer_log_probs", lambda *given: right(*given, length_normalised=True)
    )
    with pytest.raises(ValueError, match="scores differ by"):
        evaluation.run(tiny(tmp_path))
    assert not (tmp_path / "evaluation.json").exists()
