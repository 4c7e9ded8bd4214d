"""Writes RUN/summary.txt, the result on one screen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.report.naming import arms_of, interval, main_columns
from recipes.report.verdict import headlines, verdict


def summary_text(results: Mapping[str, Any], report: Path) -> str:
    """The main figures as a table, the best arm against its strongest rival, and the report's path.

    Args:
        results: The results, as `collect` returns them.
        report: Path of report.md.
    """
    evaluated = results["evaluated"]
    entries = {(entry["method"], entry["key"]): entry for entry in results["metrics"]}
    arms = arms_of(results)
    columns = main_columns(results)
    rows = [["method", *columns.values()]]
    for name, arm in arms.items():
        cells = [entries.get((name, key)) for key in columns]
        rows.append([arm["title"], *("–" if cell is None else interval(cell) for cell in cells)])
    table = _aligned(rows)
    lines = [
        f"{results['name']}: {evaluated['num_rows']} rows of {evaluated['num_users']} users, "
        f"{evaluated['split']} split, {evaluated['words']}",
        *_language_model(results["llm"]),
        "",
        *table,
        *(["† all or none hit: Wilson's interval"] if "†" in "".join(table) else []),
        "",
        *(verdict(entry, arms).replace("**", "") for entry in headlines(results)),
        f"report: {report}",
    ]
    return "\n".join(lines) + "\n"


def _language_model(llm: Mapping[str, Any] | None) -> list[str]:
    if llm is None:
        return []
    toy = " (a toy made on the spot: no statement about real ones)" if llm["stand_in"] else ""
    return [f"language model: {llm['name']}{toy}"]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
