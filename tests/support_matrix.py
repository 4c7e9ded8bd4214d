"""The support matrix of docs/support.md, written from what the tests show.

A test that shows that something works, or is refused with a message, carries
`@pytest.mark.support(area, item, state)`. `pytest --support-matrix` writes the lists of
docs/support.md from the outcomes of the run: an item has its state when all of its tests passed,
and counts as untested when one was skipped. `--support-check` compares the page with the marks.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/support.md"
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


def lists(matrix: Matrix) -> str:
    """The matrix as Markdown: a table of counts, then for each area a list of items by state."""
    counts = [f"| area | {' | '.join(STATES)} |", "|---|---:|---:|---:|"]
    sections = []
    for area in AREAS:
        own = {name: state for (of, name), state in matrix.items() if of == area}
        by_state = {state: [name for name in own if own[name] == state] for state in STATES}
        counts.append(f"| {area} | {' | '.join(str(len(by_state[s])) for s in STATES)} |")
        sections.append(f"## {area}")
        for state, names in by_state.items():
            if names:
                items = "\n".join(f"- {name}" for name in sorted(names, key=str.lower))
                sections.append(f"**{state.capitalize()}**\n\n{items}")
    return "\n\n".join(["\n".join(counts), *sections])


def parsed(markdown: str) -> Matrix:
    """What `lists` wrote."""
    found: Matrix = {}
    area = state = ""
    for line in markdown.splitlines():
        if line.startswith("## "):
            area = line.removeprefix("## ")
        elif line.startswith("**"):
            state = line.strip("*").lower()
        elif line.startswith("- "):
            found[area, line.removeprefix("- ")] = state
    return found


def differences(claimed: Matrix, written: Matrix) -> list[str]:
    """Where the page disagrees with the marks; what is untested there may be claimed here."""
    keys = sorted(claimed.keys() | written.keys())
    pairs = [(key, claimed.get(key), written.get(key)) for key in keys]
    return [f"{key}: marked {a}, written {b}" for key, a, b in pairs if b not in (a, "untested")]


def write(matrix: Matrix) -> None:
    """Put the matrix into docs/support.md."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(START)
    _, tail = rest.split(END)
    PAGE.write_text(f"{head}{START}\n\n{lists(matrix)}\n\n{END}{tail}", encoding="utf-8")


def written() -> Matrix:
    """The matrix that docs/support.md holds."""
    text = PAGE.read_text(encoding="utf-8")
    return parsed(text.split(START)[1].split(END)[0])
