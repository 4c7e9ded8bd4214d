# pyarrow.compute makes its functions when it is imported, so no checker sees them.
# pyright: reportAttributeAccessIssue=false
"""A column of times -> milliseconds since 1970 in UTC.

Whole numbers count seconds, milliseconds, microseconds or nanoseconds: the unit is told by their
magnitude, since each unit has 1000 times the one before (2020 is 1.6e9, 1.6e12, 1.6e15, 1.6e18).
Numbers with a fraction are seconds. Text is a date or a date with a time as ISO 8601 writes it;
without a zone it is UTC.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recipes.datasets.sources.distinct import exact_below
from recipes.datasets.sources.ratings import NUMBER
from recipes.datasets.sources.source import Column

UNITS = {"seconds": 1e11, "milliseconds": 1e14, "microseconds": 1e17, "nanoseconds": np.inf}
"""Name of each unit, and the number from which on the next one is meant: the year 5138."""
MEANINGFUL = 1e8
"""Smaller numbers may be of any unit: in seconds they lie before March 1973."""
ISO = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(?P<zone> ?(Z|z|[+-]\d\d(:?\d\d)?))?)?$"
ZONE = r":\d\d([.,]\d+)? ?(Z|z|[+-]\d\d(:?\d\d)?)$"
REMEDY = "write whole numbers since 1970, or ISO dates such as 2024-05-31 or 2024-05-31T18:30:00Z"
BEFORE = "a time before 1970? Write such times as ISO dates, and leave rows without a time out"


def milliseconds(column: Column) -> tuple[np.ndarray, str]:
    """Read a column of times.

    Returns:
        Milliseconds since 1970-01-01 UTC, int64 [n], and what the values were taken for.

    Raises:
        ValueError: A value is missing or no time, or values have several units; the message names
            the line.
    """
    values = column.values
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if values.null_count:
        raise column.refusal(int(pc.index(pc.is_null(values), True).as_py()), REMEDY)
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        exact = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        times = exact.cast(pa.int64()).to_numpy() // 1000
        return times, f"{kind}{_span(times)}"
    if pa.types.is_integer(kind):
        return _whole(column, values.to_numpy())
    if pa.types.is_floating(kind):
        numbers = values.cast(pa.float64()).to_numpy()
        rounded = np.abs(numbers) >= exact_below(kind)
        if kind.bit_width < 64 and rounded.any():
            raise column.refusal(
                int(rounded.argmax()), f"rounded, as {kind} cannot hold times: write float64 or int"
            )
        return _numbers(column, numbers)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text(column, pc.utf8_trim_whitespace(values))
    raise column.refused_type(REMEDY)


def _text(column: Column, values: pa.ChunkedArray) -> tuple[np.ndarray, str]:
    """Numbers or ISO dates, as the first value is."""
    numbers = pc.match_substring_regex(values, NUMBER)
    if not numbers[0].as_py():
        return _dates(column, values)
    if not pc.all(numbers).as_py():
        raise column.refusal(int(pc.index(numbers, False).as_py()), REMEDY)
    try:
        return _whole(column, values.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid:  # fractions, or beyond 64 bits
        return _numbers(column, values.cast(pa.float64()).to_numpy())


def _dates(column: Column, values: pa.ChunkedArray) -> tuple[np.ndarray, str]:
    iso = pc.match_substring_regex(values, ISO)
    if not pc.all(iso).as_py():
        raise column.refusal(int(pc.index(iso, False).as_py()), REMEDY)
    zones = pc.match_substring_regex(values, ZONE)
    if pc.any(zones).as_py() and not pc.all(zones).as_py():
        row = int(pc.index(zones, not zones[0].as_py()).as_py())
        raise column.refusal(row, "times with and without a zone: write all of them with one")
    plain = values.to_pandas().str.replace(",", ".", regex=False)
    found = pd.to_datetime(plain, format="ISO8601", utc=True, errors="coerce")
    wrong = found.isna().to_numpy()
    if wrong.any():
        raise column.refusal(int(wrong.argmax()), f"no such date or time; {REMEDY}")
    times = found.dt.as_unit("us").astype(np.int64).to_numpy() // 1000
    return times, f"ISO dates{'' if zones[0].as_py() else ', taken as UTC'}{_span(times)}"


def _numbers(column: Column, values: np.ndarray) -> tuple[np.ndarray, str]:
    finite = np.isfinite(values)
    if not finite.all():
        raise column.refusal(int((~finite).argmax()), REMEDY)
    if (values == np.floor(values)).all():
        return _whole(column, values)
    _refuse_negative(column, values)
    highest = int(values.argmax())
    if values[highest] >= UNITS["seconds"]:
        raise column.refusal(
            highest, "numbers with fractions are seconds, and this is no time in seconds"
        )
    times = np.round(values * 1000).astype(np.int64)
    return times, f"numbers with fractions, taken as seconds{_span(times)}"


def _whole(column: Column, values: np.ndarray) -> tuple[np.ndarray, str]:
    """Whole numbers, int64 or float64 [n]."""
    _refuse_negative(column, values)
    bounds = list(UNITS.values())
    highest = int(values.argmax())
    if values[highest] >= 2**63:
        raise column.refusal(highest, REMEDY)
    unit = int(np.searchsorted(bounds, values[highest], side="right"))
    name = list(UNITS)[unit]
    lower = 0.0 if unit == 0 else bounds[unit - 1]
    other = (values >= MEANINGFUL) & (values < lower)
    if other.any():
        raise column.refusal(
            int(other.argmax()),
            f"not of the unit of {column.where(highest)}, which holds {values[highest]:.0f} "
            f"({name}): write all times in one unit",
        )
    counts = values.astype(np.int64)
    times = counts * 1000 if unit == 0 else counts // 1000 ** (unit - 1)
    return times, f"whole numbers, taken as {name}{_span(times)}"


def _refuse_negative(column: Column, values: np.ndarray) -> None:
    lowest = int(values.argmin())
    if values[lowest] < 0:
        raise column.refusal(int((values < 0).argmax()), BEFORE)


def _span(times: np.ndarray) -> str:
    bounds = np.array([times.min(), times.max()], "M8[ms]").astype("M8[s]")
    return f": {bounds[0]} to {bounds[1]}"
