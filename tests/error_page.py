"""docs/errors.md: each of its parts is written by a program of its own, between two markers."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


def read_part(name: str) -> list[str]:
    """The lines of a program's part of the page."""
    text = PAGE.read_text(encoding="utf-8")
    return (
        text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0].splitlines()
    )


def write_part(name: str, text: str) -> None:
    """Replace the part of the page that belongs to a program."""
    before, opening, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- end of {name} -->\n")
    assert opening and closing, f"{PAGE} has no markers of {name}"
    PAGE.write_text(f"{before}{opening}\n{text.strip()}\n\n{closing}{after}", encoding="utf-8")


def table(heads: list[str], rows: list[str]) -> list[str]:
    """A Markdown table of finished rows."""
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows]
