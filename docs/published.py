"""Writes docs/published.md: figures that others published, on one denominator.

`python docs/published.py`. HitRatio@1 of all rows is the published figure where the source divides
by all rows, and the published figure times ValidRatio where it divides by valid answers.
"""

from pathlib import Path

from recipes.evaluation.statistics import wilson_interval
from recipes.report.paper import FIGURES, MENDED, Published

PAGE = Path(__file__).with_suffix(".md")
USERS = {"LastFM": 122, "MovieLens": 95, "Steam": 1186}
HEAD = """# Published figures on one denominator

Written by `python docs/published.py`. HitRatio@1 of generated answers among 20 candidates, divided
by **all** evaluated rows. Papers and programs divide by all rows or by those with a valid answer,
and rarely say which: the programs of LLaRA and iLoRA print correct/valid as `test_hr` and
correct/total as `metric`. `python -m recipes audit FILE` counts a file of theirs both ways
([Evaluation](evaluation.md#answers-that-other-programs-wrote)).

Intervals are Wilson's of 95 %, with one trial for each user of the test set ({users}).
They cover other users, not another training: every source has one.

| system | source | divided by | {datasets} |
|---|---|---|{rules}|
"""
TAIL = """
- By what a source divides is inferred from counts: .4421, LLaRA's figure on MovieLens, is 42 of 95,
  so of all rows. iLoRA's .5275 with a ValidRatio of .9891 fits 48 correct of 91 valid of 92 rows
  alone, which are neither the 95 of the test set nor the 88 that its loader leaves.
- PrefixRec's figures on LastFM and MovieLens are no count of rows, whichever the denominator, so
  what they are divided by is unknown, and they are taken as of all rows. Of valid answers they
  would be {prefix}.
- The thread names no dataset; 25 correct of 64 valid of 95 rows are its three figures.
- Against LLaRA after its mistake was mended, iLoRA's figures on this denominator are {gains}:
  {mean} in the mean, where the paper has 11.4 % against the earlier ones. On every dataset the
  interval of the one holds the figure of the other.
- The paper's recommenders and MoRec always answer, so their figures are of all rows as they stand.
"""


def cell(found: Published, place: int, users: int) -> str:
    """One figure and its interval."""
    hit = found.of_all(place)
    if hit is None:
        return "not given"
    low, high = wilson_interval(hit * users, users, 0.95)
    return f"{hit:.4f} [{low:.3f}, {high:.3f}]"


def page() -> str:
    """The page's text."""
    head = HEAD.format(
        users=", ".join(f"{name} {count}" for name, count in USERS.items()),
        datasets=" | ".join(USERS),
        rules="---|" * (len(USERS) - 1) + "---",
    )
    shown = [one for one in FIGURES if one.generates]
    lines = [
        f"| {one.system} | {one.source} | {one.divided_by} | "
        + " | ".join(cell(one, place, users) for place, users in enumerate(USERS.values()))
        + " |"
        for one in shown
    ]
    ours = next(one for one in shown if one.system == "iLoRA")
    theirs = next(one for one in shown if one.source == MENDED)
    figures = [(ours.of_all(place), theirs.of_all(place)) for place in range(len(USERS))]
    gains = [100 * (mine / other - 1) for mine, other in figures if mine and other]
    unknown = next(one for one in shown if one.divided_by == "unknown")
    prefix = ", ".join(f"{hit * valid:.4f}" for valid, hit in filter(None, unknown.figures))
    told = ", ".join(f"{gain:+.1f} % ({name})" for gain, name in zip(gains, USERS, strict=True))
    return (
        head
        + "\n".join(lines)
        + "\n"
        + TAIL.format(prefix=prefix, gains=told, mean=f"{sum(gains) / 3:+.1f} %")
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
