"""The section of docs/versions.md that the matrix writes."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from peft_matrix.reasons import Reason
from peft_matrix.verdict import CONTROL, Verdict

PAGE = Path(__file__).parents[2] / "docs" / "versions.md"
BEGIN = "<!-- written by `python tests/peft_matrix PEFT --write` -->"
END = "<!-- end of what is written -->"


def section(verdicts: Mapping[str, Mapping[str, Verdict]], reasons: tuple[Reason, ...]) -> str:
    """Return the section's text.

    Args:
        verdicts: By part of the matrix and by run.
        reasons: In the order of the table.
    """
    runs = [run for run in next(iter(verdicts.values())) if run != CONTROL]
    lines = [
        f"PEFT {version('peft')}, transformers {version('transformers')}:",
        "",
        "| tests | run | passed | refused | differ | skipped by PEFT | faults |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for part, by_run in verdicts.items():
        lines += [_counts(part, run, verdict) for run, verdict in by_run.items()]
    lines += ["", f"| not passed | tests ({', '.join(runs)}) | why |", "| --- | ---: | --- |"]
    for reason in reasons:
        counts = [sum(by_run[run].reasons[reason] for by_run in verdicts.values()) for run in runs]
        told = f"{reason.kind}: {reason.what}"
        lines.append(f"| {told} | {', '.join(map(str, counts))} | {reason.why} |")
    return "\n".join(lines) + "\n"


def _counts(part: str, run: str, verdict: Verdict) -> str:
    kinds = [verdict.of_kind(kind) for kind in ("refused", "differs")]
    cells = [part, run, verdict.passed, *kinds, verdict.skipped, len(verdict.faults)]
    return f"| {' | '.join(map(str, cells))} |"


def written(page: str) -> str:
    """Return the section that a page holds."""
    return page.partition(BEGIN)[2].partition(END)[0].strip("\n") + "\n"


def rewritten(page: str, text: str) -> str:
    """Return the page with another section."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"
