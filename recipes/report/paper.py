"""The paper's table beside a run's own: published figures, each on the denominator of all rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recipes.report.naming import GENERATED, interval
from recipes.report.tables import markdown_table

Results = Mapping[str, Any]
PAPER = "iLoRA's paper (arXiv 2408.10159)"
MENDED = "LLaRA's README, July 2024"
THREAD = "a reader of LLaRA's issue 19, one A6000"
DATASETS = {"lastfm": "LastFM", "movielens": "MovieLens", "steam": "Steam"}


@dataclass(frozen=True)
class Published:
    """One system's published HitRatio@1 among 20 candidates, of each user's last row."""

    system: str
    method: str | None
    """The method of ours that it is; None for a repetition."""
    source: str
    divided_by: Literal["total", "valid", "unknown"]
    """Whether invalid answers count as misses in the published figure. Where that is unknown it is
    taken to be so, and may be too high."""
    figures: Sequence[tuple[float, float] | None]
    """ValidRatio and HitRatio@1 on each of `DATASETS`, as published."""
    generates: bool = True
    """Whether it writes answers, which can be invalid."""

    def of_all(self, place: int) -> float | None:
        """HitRatio@1 of all rows on the dataset at a place of `DATASETS`."""
        found = self.figures[place]
        if found is None:
            return None
        valid, hit = found
        return hit * valid if self.divided_by == "valid" else hit


def _ranks(system: str, method: str, *hits: float) -> Published:
    return Published(system, method, PAPER, "total", [(1.0, hit) for hit in hits], generates=False)


FIGURES = (
    _ranks("GRU4Rec", "gru4rec", 0.2616, 0.3750, 0.4168),
    _ranks("Caser", "caser", 0.2233, 0.3861, 0.4368),
    _ranks("SASRec", "sasrec", 0.2233, 0.3444, 0.4010),
    _ranks("MoRec", "morec", 0.1652, 0.2822, 0.3911),
    Published(
        "Llama 2 7B, not tuned",
        "zero-shot",
        PAPER,
        "total",
        [(0.3443, 0.0246), (0.4421, 0.0421), (0.1653, 0.0135)],
    ),
    Published("GPT-4", "chat", PAPER, "total", [(1.0, 0.3770), (0.9895, 0.2000), (0.9798, 0.3626)]),
    Published(
        "TALLRec",
        "tallrec",
        PAPER,
        "total",
        [(0.9836, 0.4180), (0.9263, 0.3895), (0.9840, 0.4637)],
    ),
    Published(
        "PrefixRec",
        "prefixrec",
        PAPER,
        "unknown",
        [(0.9627, 0.3754), (0.8836, 0.2973), (0.9273, 0.4108)],
    ),
    Published("LLaRA", "lora", PAPER, "total", [(1.0, 0.4508), (0.9684, 0.4421), (0.9975, 0.4949)]),
    Published(
        "LLaRA, after a mistake was mended",
        "lora",
        MENDED,
        "total",
        [(0.9754, 0.5246), (0.9789, 0.4526), (0.9958, 0.5051)],
    ),
    Published(
        "iLoRA", "ilora", PAPER, "valid", [(1.0, 0.5000), (0.9891, 0.5275), (0.9981, 0.5264)]
    ),
    Published("LLaRA, run again", None, THREAD, "valid", [None, (0.6737, 0.3906), None]),
)


def paper_section(results: Results) -> str:
    """A line for each system of the paper that the run has, in Markdown.

    Empty where data, protocol or candidates are others than the paper's.
    """
    dataset, evaluated = results["dataset"], results["evaluated"]
    same = dataset["protocol"] == "llara" and evaluated["candidates"] == "sampled"
    if dataset["dataset"] not in DATASETS or not same or evaluated["num_candidates"] != 20:
        return ""
    place = list(DATASETS).index(dataset["dataset"])
    entries = {(entry["method"], entry["key"]): entry for entry in results["metrics"]}
    rows = []
    for arm in results["arms"]:
        found = {one.source: one.of_all(place) for one in FIGURES if one.method == arm["method"]}
        if not found:
            continue
        shown = [_figure(found.get(source)) for source in (PAPER, MENDED)]
        ours = [entries.get((arm["name"], key)) for key in (GENERATED, "hit_ratio@1/ranking")]
        rows.append(
            [arm["title"], *shown, *("–" if one is None else interval(one) for one in ours)]
        )
    if not rows:
        return ""
    head = ["", "paper", "LLaRA after its fix", "here, generated", "here, ranked"]
    return (
        f"## Beside the paper\n\nHitRatio@1 on {DATASETS[dataset['dataset']]} among 20 candidates, "
        "of all rows: an invalid answer is a miss, so the paper's iLoRA is its figure times its "
        f"ValidRatio. {_model(results)} {_rows(evaluated)}\n\n" + markdown_table(head, rows)
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _model(results: Results) -> str:
    llm = results["llm"]
    if llm is None:
        return "Published figures are of one training, without intervals."
    ours = "a stand-in that knows no language" if llm["stand_in"] else llm["name"]
    return (
        "The paper's language model is Llama 2 7B, generating, of one training without intervals; "
        f"here it is {ours}."
    )


def _rows(evaluated: Mapping[str, Any]) -> str:
    if evaluated["rows"] == "last" and evaluated["split"] == "test":
        return "The rows are the paper's, each test user's last; its candidates were drawn anew."
    return "**The rows are not the paper's**, which are each test user's last one."
