# pyarrow.compute makes its functions when it is imported, so no checker sees them.
# pyright: reportAttributeAccessIssue=false
"""A column of ratings -> numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipes.datasets.sources.source import Column

NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
REMEDY = "write a number, or leave the row out"


def ratings(column: Column) -> np.ndarray:
    """Read a column of ratings: float64 [n].

    Raises:
        ValueError: A value is missing or no number; the message names the line.
    """
    values = column.values
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = pc.utf8_trim_whitespace(values)
        wrong = pc.invert(pc.match_substring_regex(values, NUMBER))
        values = pc.if_else(wrong, pa.scalar(None, kind), values)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise column.refused_type(REMEDY)
    found = values.cast(pa.float64(), safe=False).to_numpy()
    finite = np.isfinite(found)
    if not finite.all():
        raise column.refusal(int((~finite).argmax()), REMEDY)
    return found
