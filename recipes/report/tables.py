"""Tables in Markdown."""

import re
from collections.abc import Sequence

BARE = re.compile(r"(?<!\\)\|")
"""A bar that would end a cell."""


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the header cells `head`. A bar in a cell stays a bar."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(BARE.sub(r"\\|", " ".join(cell.split())) for cell in line) + " |"
        for line in lines
    )
