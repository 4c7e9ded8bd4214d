"""Writes a report as one HTML file that needs no network: text, plots and an explorer of users."""

import base64
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt

PLOT = re.compile(r'src="(?:plots/)?([^"/]+\.png)"')


def page(title: str, report: str, plots: Mapping[str, bytes], explorer: Any | None) -> str:
    """The page.

    Args:
        title: The page's title.
        report: The report in Markdown.
        plots: Name -> content of each PNG file that the report shows, beside it or in `plots/`.
        explorer: What `explored` returns; None leaves the explorer out.

    Returns:
        HTML with styles, script, data and images in it.
    """
    # Of HTML, a report holds blocks of its own; within a line, none is meant.
    reader = MarkdownIt("commonmark", {"html": True}).enable("table").disable("html_inline")
    body = reader.render(report)
    filled = {
        "TITLE": html.escape(title),
        "REPORT": PLOT.sub(lambda found: f'src="{_inlined(plots[unquote(found[1])])}"', body),
        "EXPLORER": "" if explorer is None else _asset("explorer.html"),
        "DATA": _embedded(explorer),
    }
    template = _asset("page.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template)


def _asset(name: str) -> str:
    return (files("recipes.report") / "assets" / name).read_text(encoding="utf-8")


def _inlined(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _embedded(value: Any) -> str:
    """JSON that a script element can hold, whatever titles and answers spell."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
