"""The paper's table beside a run's own, and tables and plots along an axis, by hand."""

from typing import Any

import pytest

from recipes.methods import METHODS
from recipes.report.along import MARKERS, layout, layout_figure, layout_section
from recipes.report.gate_maps import effective_number, gates_figure, weights_section
from recipes.report.paper import FIGURES, MENDED, PAPER, paper_section

KEY = "hit_ratio@1/ranking"


def entry(value: float, method: str = "", key: str = KEY) -> dict[str, Any]:
    ends = {"low": value - 0.01, "high": value + 0.01}
    return {"method": method, "key": key, "value": value, **ends}


def run(**changed: Any) -> dict[str, Any]:
    """What a run on MovieLens leaves, as far as the section reads it."""
    evaluated = {"candidates": "sampled", "num_candidates": 20, "rows": "last", "split": "test"}
    generated = "hit_ratio@1/generation/total"
    results = {
        "dataset": {"dataset": "movielens", "protocol": "llara"},
        "evaluated": evaluated | changed.pop("evaluated", {}),
        "llm": {"stand_in": True, "name": "stand-in"},
        "arms": [{"name": n, "method": n, "title": n} for n in ("popularity", "sasrec", "lora")]
        + [{"name": "two", "method": "ilora", "title": "iLoRA, num_experts 2"}],
        "metrics": [entry(0.4, "sasrec"), entry(0.3, "lora"), entry(0.25, "lora", generated)],
    }
    return results | changed


def test_a_run_as_the_papers_has_its_figures_and_those_after_the_fix() -> None:
    text = paper_section(run())
    assert "|  | paper | LLaRA after its fix | here, generated | here, ranked |" in text
    assert "| sasrec | 0.3444 | – | – | 0.400 [0.390, 0.410] |" in text
    ours = "0.250 [0.240, 0.260] | 0.300 [0.290, 0.310]"
    assert f"| lora | 0.4421 | 0.4526 | {ours} |" in text
    # .5275 of valid answers, of which there are .9891 of all rows.
    assert "| iLoRA, num_experts 2 | 0.5218 | – | – | – |" in text
    assert "popularity" not in text and "a stand-in that knows no language" in text
    assert "The rows are the paper's" in text
    assert "**The rows are not the paper's**" in paper_section(run(evaluated={"rows": "all"}))


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": {"dataset": "movielens", "protocol": "chronological"}},
        {"dataset": {"dataset": "ring", "protocol": "llara"}},
        {"evaluated": {"num_candidates": 30}},
        {"evaluated": {"candidates": "catalogue"}},
        {"arms": [{"name": "popularity", "method": "popularity", "title": "popularity"}]},
    ],
    ids=str,
)
def test_what_the_paper_has_not_measured_has_no_section(changed: dict[str, Any]) -> None:
    assert paper_section(run(**changed)) == ""


def test_published_figures_are_of_known_systems_and_are_shares() -> None:
    later = {"chat", "morec"}  # systems of the paper that may be listed later
    assert {one.method for one in FIGURES} <= {*METHODS, *later, None}
    assert {one.source for one in FIGURES if one.method} == {PAPER, MENDED}
    for one in FIGURES:
        found = [figure for place in range(3) if (figure := one.of_all(place)) is not None]
        assert found and all(0 < figure < 1 for figure in found)


def study() -> dict[str, Any]:
    """Two shares of users for two arms that learn, and chance."""
    rows = [
        {"arm": arm, "method": arm, "varied": {"prepare.train_share": share}, "given": {}}
        | {"metrics": {KEY: entry(value)}}
        for share, values in ((0.5, (0.05, 0.2, 0.3)), (1.0, (0.05, 0.25, 0.4)))
        for arm, value in zip(("random", "lora", "ilora"), values, strict=True)
    ]
    arms = [
        {"name": n, "learns": n != "random", "is_adapter": False}
        for n in ("random", "lora", "ilora")
    ]
    results = {"name": "users", "along": "prepare.train_share", "rows": rows, "arms": arms}
    return results | {"rivals": []}


def test_a_varied_field_runs_along_the_columns() -> None:
    values, lines = layout(study(), KEY)
    assert values == ["0.5", "1.0"] and [line.label for line in lines] == [
        "random",
        "lora",
        "ilora",
    ]
    text = layout_section(study(), KEY, "HitRatio@1")
    assert text.startswith("## HitRatio@1 along `prepare.train_share`\n")
    assert "|  | 0.5 | 1.0 |" in text
    assert "| ilora | 0.300 [0.290, 0.310] | 0.400 [0.390, 0.410] |" in text
    (axes,) = layout_figure(study(), KEY, "HitRatio@1").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "1.0"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["lora", "ilora"]
    (axes,) = layout_figure(study() | {"rivals": ["random"]}, KEY, "HitRatio@1").axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["random", "lora", "ilora"]


def test_arms_that_differ_in_the_setting_are_one_line_and_others_are_level() -> None:
    given = [("lora", "lora", {}), ("two", "ilora", {"num_experts": 2})]
    given += [("eight", "ilora", {"num_experts": 8})]
    given += [("mlp", "ilora", {"num_experts": 8, "gate": "mlp"})]
    rows = [
        {"arm": arm, "method": method, "varied": {}, "given": own, "metrics": {KEY: entry(0.1)}}
        for arm, method, own in given
    ]
    arms = [{"name": arm, "learns": True, "is_adapter": True} for arm, _, _ in given]
    results = {"name": "experts", "along": "num_experts", "rows": rows, "arms": arms, "rivals": []}
    values, lines = layout(results, KEY)
    assert values == ["2", "8", "–"]
    assert {line.label: list(line.points) for line in lines} == {
        "lora": ["–"],
        "ilora": ["2", "8"],
        "ilora, gate mlp": ["8"],
    }
    (axes,) = layout_figure(results, KEY, "HitRatio@1").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "8"]
    assert layout_section({"along": None}, KEY, "HitRatio@1") == ""


def test_values_that_are_no_numbers_are_not_joined_and_no_two_arms_look_alike() -> None:
    names = [f"arm{number}" for number in range(20)]
    rows = [
        {
            "arm": arm,
            "method": arm,
            "varied": {"d": value},
            "given": {},
            "metrics": {KEY: entry(0.1)},
        }
        for arm in names
        for value in ("movielens", "lastfm")
    ]
    arms = [{"name": arm, "learns": True, "is_adapter": True} for arm in names]
    results = {"name": "n", "along": "d", "rows": rows, "arms": arms, "rivals": []}
    (axes,) = layout_figure(results, KEY, "HitRatio@1").axes
    drawn = [line for line in axes.lines if str(line.get_marker()) in MARKERS]
    assert {line.get_linestyle() for line in drawn} == {"None"}
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == len(names)
    numbered = [row | {"varied": {"d": len(row["varied"]["d"])}} for row in rows]
    (axes,) = layout_figure({**results, "rows": numbered}, KEY, "HitRatio@1").axes
    assert {one.get_linestyle() for one in axes.lines if str(one.get_marker()) in MARKERS} == {"-"}


def test_gates_of_all_cells_are_counted_and_drawn_if_their_rows_were_kept() -> None:
    gate = {"seed": 0, "mean_weights": [0.5, 0.5], "mean_entropy": 0.0, "uniform_entropy": 0.693}
    kept = gate | {"weights": [[1.0, 0.0], [0.0, 1.0]]}
    cells = [
        {"varied": {"prepare.num_candidates": count}, "gates": {"ilora": own}}
        for count, own in ((20, gate), (30, kept))
    ]
    text = weights_section({"cells": cells})
    # Each row chooses one expert, and both are chosen alike.
    assert "| ilora, num_candidates 20 | 0 | 0.50, 0.50 | 0.00 of 0.69 | 1.00 | 2.00 |" in text
    assert "| ilora, num_candidates 30 |" in text
    assert effective_number([1.0, 0.0]) == 1.0
    figure = gates_figure({"name": "n", "cells": cells})
    assert figure is not None and figure.axes[0].get_title() == "ilora, num_candidates 30"
    assert gates_figure({"name": "n", "cells": cells[:1]}) is None
    assert weights_section({"cells": [{"varied": {}, "gates": {}}]}) == ""
