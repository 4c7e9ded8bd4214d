"""The README's support matrix, written from what the tests show.

A test that shows that something works, or is refused with a message, carries
`@pytest.mark.support(area, item, state)`. `pytest --support-matrix` writes the table into README.md
from the outcomes of the run: an item has its state when all of its tests passed, and counts as
untested when one was skipped. `--support-check` holds the README against the marks alone.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- support matrix: pytest --support-matrix -->", "<!-- end of support matrix -->"
AREAS = (
    "Model families",
    "Layer types",
    "Task types",
    "Quantised bases",
    "Precision and compilation",
    "Adapter lifecycle",
    "Gates",
    "Several devices",
    "Trainer and TRL",
    "Versions",
)
COLLECTED = pytest.StashKey[list[pytest.Item]]()
"""The tests of a session, also those that its options deselect."""
STATES = ("works", "refused", "untested")
SEPARATOR, NONE = " · ", "–"
UNTESTED = (
    ("Several devices", "GPUs"),
    ("Several devices", "nn.DataParallel"),
    ("Several devices", "tensor parallelism"),
)
"""What nobody has run here."""
Matrix = dict[tuple[str, str], str]


def marks(item: pytest.Item) -> Iterable[tuple[str, str, str]]:
    """The (area, item, state) of a test.

    Raises:
        ValueError: An unknown area or state.
    """
    for mark in item.iter_markers("support"):
        area, name, state = mark.args
        if area not in AREAS or state not in STATES[:2]:
            raise ValueError(f"{item.nodeid}: support{mark.args} is no known area and state")
        yield area, name, state


def claimed(items: Iterable[pytest.Item]) -> Matrix:
    """Every marked item, as its tests claim.

    Raises:
        ValueError: Two tests claim different states of an item.
    """
    found: Matrix = dict.fromkeys(UNTESTED, "untested")
    for item in items:
        for area, name, state in marks(item):
            before = found.setdefault((area, name), state)
            if before != state:
                raise ValueError(f"{area}: {name} is claimed {before} and {state}")
    return found


class SupportMatrix:
    """Collects the outcomes of a run; reports carry the marks, from xdist's workers too."""

    def __init__(self) -> None:
        self.found: Matrix = dict.fromkeys(UNTESTED, "untested")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Every marked item, as its tests claim."""
        self.found |= claimed(session.items)
        for item in session.items:
            item.user_properties += [("support", mark) for mark in marks(item)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that did not pass takes its items' state away."""
        for key, mark in report.user_properties:
            if key == "support":
                area, name, state = mark
                self.found.setdefault((area, name), state)
                if not report.passed:
                    self.found[area, name] = "untested"


def table(matrix: Matrix) -> str:
    """The matrix as Markdown: a row for each area, items by state."""
    lines = [f"| | {' | '.join(STATES)} |", "|---|---|---|---|"]
    for area in AREAS:
        own = {name: state for (of, name), state in matrix.items() if of == area}
        cells = [
            SEPARATOR.join(sorted((n for n in own if own[n] == state), key=str.lower)) or NONE
            for state in STATES
        ]
        if own:
            lines.append(f"| {area} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parsed(markdown: str) -> Matrix:
    """What `table` wrote."""
    found: Matrix = {}
    for line in markdown.splitlines()[2:]:
        area, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for state, cell in zip(STATES, cells, strict=True):
            found |= {(area, name): state for name in cell.split(SEPARATOR) if name != NONE}
    return found


def differences(claimed: Matrix, written: Matrix) -> list[str]:
    """Where README.md disagrees with the marks; what is untested there may be claimed here."""
    keys = sorted(claimed.keys() | written.keys())
    pairs = [(key, claimed.get(key), written.get(key)) for key in keys]
    return [f"{key}: marked {a}, README {b}" for key, a, b in pairs if b not in (a, "untested")]


def write(matrix: Matrix) -> None:
    """Put the table into README.md."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(START)
    _, tail = rest.split(END)
    README.write_text(f"{head}{START}\n{table(matrix)}\n{END}{tail}", encoding="utf-8")


def readme_matrix() -> Matrix:
    """The matrix that README.md holds."""
    text = README.read_text(encoding="utf-8")
    return parsed(text.split(START)[1].split(END)[0].strip())
