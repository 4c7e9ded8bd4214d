"""Writes docs/published.md: figures that others published, on one denominator.

`python docs/published.py`. HitRatio@1 of all rows is the published figure where the source divides
by all rows, and the published figure times ValidRatio where it divides by valid answers.
"""

from pathlib import Path

from recipes.evaluation.statistics import wilson_interval

PAGE = Path(__file__).with_suffix(".md")
USERS = {"LastFM": 122, "MovieLens": 95, "Steam": 1186}
PAPER = "iLoRA's paper (arXiv 2408.10159)"
THREAD = "a reader of LLaRA's issue 19, one A6000"
FIGURES = [
    # system, source, what HitRatio@1 is divided by, (ValidRatio, HitRatio@1) of each dataset
    (
        "Llama 2 7B, not tuned",
        PAPER,
        "total",
        [(0.3443, 0.0246), (0.4421, 0.0421), (0.1653, 0.0135)],
    ),
    ("GPT-4", PAPER, "total", [(1.0, 0.3770), (0.9895, 0.2000), (0.9798, 0.3626)]),
    ("TALLRec", PAPER, "total", [(0.9836, 0.4180), (0.9263, 0.3895), (0.9840, 0.4637)]),
    ("PrefixRec", PAPER, "total", [(0.9627, 0.3754), (0.8836, 0.2973), (0.9273, 0.4108)]),
    ("LLaRA", PAPER, "total", [(1.0, 0.4508), (0.9684, 0.4421), (0.9975, 0.4949)]),
    (
        "LLaRA, after a mistake was mended",
        "LLaRA's README, July 2024",
        "total",
        [(0.9754, 0.5246), (0.9789, 0.4526), (0.9958, 0.5051)],
    ),
    ("iLoRA", PAPER, "valid", [(1.0, 0.5000), (0.9891, 0.5275), (0.9981, 0.5264)]),
    ("LLaRA, run again", THREAD, "valid", [None, (0.6737, 0.3906), None]),
]
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
- The thread names no dataset; 25 correct of 64 valid of 95 rows are its three figures.
- Against LLaRA after its mistake was mended, iLoRA's figures on this denominator are {gains}:
  {mean} in the mean, where the paper has 11.4 % against the earlier ones. On every dataset the
  interval of the one holds the figure of the other.
- The paper's recommenders and MoRec always answer, so their figures are of all rows as they stand.
"""


def of_all(divided_by: str, valid: float, hit: float) -> float:
    """HitRatio@1 of all rows."""
    return hit * valid if divided_by == "valid" else hit


def cell(divided_by: str, found: tuple[float, float] | None, users: int) -> str:
    """One figure and its interval."""
    if found is None:
        return "not given"
    hit = of_all(divided_by, *found)
    low, high = wilson_interval(hit * users, users, 0.95)
    return f"{hit:.4f} [{low:.3f}, {high:.3f}]"


def page() -> str:
    """The page's text."""
    head = HEAD.format(
        users=", ".join(f"{name} {count}" for name, count in USERS.items()),
        datasets=" | ".join(USERS),
        rules="---|" * (len(USERS) - 1) + "---",
    )
    lines = [
        f"| {system} | {source} | {divided} | "
        + " | ".join(
            cell(divided, one, users) for one, users in zip(found, USERS.values(), strict=True)
        )
        + " |"
        for system, source, divided, found in FIGURES
    ]
    by_name = {system: [of_all(d, *f) for f in found if f] for system, _, d, found in FIGURES}
    gains = [
        100 * (ours / theirs - 1)
        for ours, theirs in zip(
            by_name["iLoRA"], by_name["LLaRA, after a mistake was mended"], strict=True
        )
    ]
    told = ", ".join(f"{gain:+.1f} % ({name})" for gain, name in zip(gains, USERS, strict=True))
    return head + "\n".join(lines) + "\n" + TAIL.format(gains=told, mean=f"{sum(gains) / 3:+.1f} %")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
