"""`python -m recipes audit FILE`: counts answers again that a reference implementation has written.

LLaRA and iLoRA write a CSV file with one evaluated row a line: `generate` is the first line of the
answer, `real` the target's title, and `cans` the list of the candidates' titles as Python writes a
list. Their programs print correct/valid as `test_hr` and correct/total as `metric`. Papers report
either, so the audit prints both, under the reference's rule and under ours (`answers.py`), each
with Wilson's interval, and says which answers a rule calls invalid, and why.
"""

import ast
import csv
import io
import json
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recipes.evaluation.answers import parse_answer, parse_answer_by_substring
from recipes.evaluation.statistics import wilson_interval

COLUMNS = ("generate", "real", "cans")
CONFIDENCE = 0.95
INCOMPLETE = {120: ("LastFM", 122), 88: ("MovieLens", 95), 1184: ("Steam", 1186)}
"""Rows that the reference's loader leaves of a test set, since it drops the last batch."""
UNREADABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError)
"""What Python raises where it cannot read a list."""


@dataclass(frozen=True)
class Answered:
    """One evaluated row."""

    answer: str
    target: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """A count as a share of another, with Wilson's interval."""

    name: str
    count: int
    of: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Audit:
    """What `audit` finds in a file."""

    rows: int
    shares: tuple[Share, ...]
    invalid: dict[str, int]
    """Why the reference's rule calls an answer invalid -> number of rows."""
    notes: tuple[str, ...]
    confidence: float = CONFIDENCE

    def as_text(self) -> str:
        """The lines that the command prints."""
        width = max(len(share.name) for share in self.shares)
        lines = [f"{self.rows} rows; Wilson intervals of {self.confidence:.0%}, rows as trials", ""]
        lines += [f"  {share.name:<{width}}  {_written(share)}" for share in self.shares]
        if self.invalid:
            lines += ["", "invalid by the reference's rule"]
            lines += [f"  {count:>5}  {reason}" for reason, count in self.invalid.items()]
        return "\n".join([*lines, *(f"\nnote: {note}" for note in self.notes)])


def run_audit(path: Path, as_json: bool) -> str:
    """The text or the JSON that the command prints.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not in the reference implementations' format.
    """
    found = audit(read_answers(path))
    return json.dumps(asdict(found), indent=2) if as_json else found.as_text()


def read_answers(path: Path) -> list[Answered]:
    """Read a CSV file with the columns `generate`, `real` and `cans`.

    Raises:
        ValueError: A column is missing, there is no row, or a line's candidates are no list of
            titles. The message names file, line and value.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path} has no column {', '.join(missing)}: an audit reads the CSV file with "
                    f"{', '.join(COLUMNS)}, as LLaRA and iLoRA write it (valid.csv, test.csv)"
                )
            rows = [_answered(path, reader.line_num, line) for line in reader]
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not in UTF-8 ({error}): convert it first") from error
    if not rows:
        raise ValueError(f"{path} has no rows: there is nothing to audit")
    return rows


def _answered(path: Path, number: int, line: dict[str, str | None]) -> Answered:
    answer, target, listed = (line[name] for name in COLUMNS)
    if answer is None or target is None or listed is None:
        raise ValueError(f"{path}, line {number} ends before its last column: is the file whole?")
    try:
        candidates = ast.literal_eval(listed)
        glued = _strings(listed) > len(candidates)
    except UNREADABLE as error:
        raise _no_list(path, number, listed) from error
    whole = isinstance(candidates, list | tuple) and candidates
    if glued or not whole or not all(isinstance(title, str) for title in candidates):
        raise _no_list(path, number, listed)
    return Answered(answer, target, tuple(candidates))


def _strings(listed: str) -> int:
    """How many titles in quotes a list is written with.

    An array of numpy has no commas between them, and Python reads what is side by side as one.
    """
    tokens = tokenize.generate_tokens(io.StringIO(listed.strip()).readline)
    return sum(token.type == tokenize.STRING for token in tokens)


def _no_list(path: Path, number: int, listed: str) -> ValueError:
    shown = listed if len(listed) < 60 else f"{listed[:57]}..."
    return ValueError(
        f"{path}, line {number}: cans={shown!r} is not a list of titles in quotes, with commas"
    )


def audit(rows: Sequence[Answered]) -> Audit:
    """Count the answers under both rules and both denominators."""
    kinds = [_kinds(row) for row in rows]
    counts = Counter(kind for found in kinds for kind in found)
    total, valid, exact = len(rows), counts["valid"], counts["exactly valid"]
    shares = (
        _share("ValidRatio, substring rule of the reference", valid, total),
        _share("HitRatio@1 of total, substring rule (`metric`)", counts["correct"], total),
        _share("HitRatio@1 of valid, substring rule (`test_hr`)", counts["correct"], valid),
        _share("ValidRatio, a whole title", exact, total),
        _share("HitRatio@1 of total, a whole title", counts["exactly correct"], total),
        _share("HitRatio@1 of valid, a whole title", counts["exactly correct"], exact),
        _share("right answers that the substring rule voids", counts["voided"], total),
        _share("ValidRatio of a perfect generator, substring rule", counts["possible"], total),
    )
    reasons = Counter(
        _reason(row) for row, found in zip(rows, kinds, strict=True) if "valid" not in found
    )
    return Audit(total, shares, dict(reasons.most_common()), tuple(_notes(rows)))


def _kinds(row: Answered) -> list[str]:
    """Everything that a row is counted as."""
    named = parse_answer_by_substring(row.answer, row.candidates)
    exactly = parse_answer(row.answer, row.candidates)
    perfect = parse_answer_by_substring(row.target, row.candidates)
    right = named is not None and _is_target(row, named)
    exactly_right = exactly is not None and _is_target(row, exactly)
    found = {
        "valid": named is not None,
        "correct": right,
        "exactly valid": exactly is not None,
        "exactly correct": exactly_right,
        "voided": exactly_right and named is None,
        "possible": perfect is not None and _is_target(row, perfect),
    }
    return [kind for kind, holds in found.items() if holds]


def _is_target(row: Answered, index: int) -> bool:
    return _plain(row.candidates[index]) == _plain(row.target)


def _plain(text: str) -> str:
    return text.strip().lower()


def _reason(row: Answered) -> str:
    """Why no single candidate's title stands in the answer."""
    answer, titles = _plain(row.answer), [_plain(title) for title in row.candidates]
    if sum(title in answer for title in titles) > 1:
        if "" in titles:
            return "an empty title among the candidates, which stands in every answer"
        return "several candidates' titles stand in the answer"
    if not answer:
        return "empty"
    if any(title.startswith(answer) for title in titles):
        return "the beginning of a candidate's title (cut short)"
    return "names no candidate"


def _notes(rows: Sequence[Answered]) -> Iterator[str]:
    absent = sum(_plain(row.target) not in map(_plain, row.candidates) for row in rows)
    if absent:
        yield f"in {absent} rows the target is not among the candidates, so no answer is right"
    sizes = sorted({len(row.candidates) for row in rows})
    if len(sizes) > 1:
        yield f"rows have different numbers of candidates: {', '.join(map(str, sizes))}"
    if len(rows) in INCOMPLETE:
        dataset, whole = INCOMPLETE[len(rows)]
        yield (
            f"{len(rows)} rows: {dataset}'s test set has {whole}, and the reference's loader "
            "drops its last batch, which is incomplete"
        )


def _share(name: str, count: int, of: int) -> Share:
    if not of:
        return Share(name, count, of, None, None, None)
    low, high = wilson_interval(count, of, CONFIDENCE)
    return Share(name, count, of, count / of, low, high)


def _written(share: Share) -> str:
    counted = f"({share.count} of {share.of})"
    if share.value is None:
        return f"undefined {counted}"
    return f"{share.value:.4f} [{share.low:.4f}, {share.high:.4f}] {counted}"
