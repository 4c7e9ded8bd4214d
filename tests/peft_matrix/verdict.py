"""What the outcomes of the runs say: how many tests passed, and which reasons the others have."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft_matrix.reasons import Reason

CONTROL, UNIFORM, ROUTED = "lora", "uniform", "routed"
"""The runs: with plain LoRA; with iLoRA and no routing; with iLoRA and a routing at every call."""
Outcomes = Mapping[str, Mapping[str, Any]]
"""By test: `outcome`, and of a failure `error`, `message` and `where`."""


@dataclass
class Verdict:
    """One run held against that of plain LoRA."""

    passed: int = 0
    skipped: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)
    """How many tests each reason explains."""
    faults: list[str] = field(default_factory=list)
    """Failures without a reason, one line each."""

    def of_kind(self, kind: str) -> int:
        """Return how many tests have a reason of one kind."""
        return sum(count for reason, count in self.reasons.items() if reason.kind == kind)


def judge(lora: Outcomes, found: Outcomes, reasons: tuple[Reason, ...]) -> Verdict:
    """Judge the outcomes of a run with iLoRA.

    Args:
        lora: The same tests with plain LoRA; what it skips, iLoRA may skip.
        found: With iLoRA.
        reasons: The known ones; the first that explains a failure counts.
    """
    verdict = Verdict()
    for test, result in found.items():
        outcome = result["outcome"]
        if outcome == "passed":
            verdict.passed += 1
        elif outcome == "skipped" and lora.get(test, {}).get("outcome") == "skipped":
            verdict.skipped += 1
        elif reason := _reason(test, result, reasons):
            verdict.reasons[reason] += 1
        else:
            verdict.faults.append(_line(test, result))
    verdict.faults += [f"{test}: did not run" for test in lora if test not in found]
    return verdict


def _reason(test: str, result: Mapping[str, Any], reasons: tuple[Reason, ...]) -> Reason | None:
    message = result.get("message", "")
    return next((reason for reason in reasons if reason.explains(test, message)), None)


def _line(test: str, result: Mapping[str, Any]) -> str:
    message = (result.get("message") or "").partition("\n")[0]
    where = " < ".join(reversed(result.get("where", [])))
    return f"{test}: {result.get('error', result['outcome'])}: {message} ({where})"


def unneeded(verdicts: Mapping[str, Verdict], reasons: tuple[Reason, ...]) -> Iterator[str]:
    """Return a line for each reason that no test of a full run has any longer."""
    for reason in reasons:
        if not any(verdict.reasons[reason] for verdict in verdicts.values()):
            yield f"reasons.py: no test has the reason {reason.what!r} any longer; remove it"
