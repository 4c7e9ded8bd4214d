"""The distinct values of a column as text, numbered in order of first appearance."""

import numpy as np
import pandas as pd
import pyarrow as pa

from recipes.datasets.sources.source import Column

EXACT = 2.0**53
"""From here on floats leave out whole numbers."""
BITS = {16: 11, 32: 24, 64: 53}
"""Binary digits that a float of this width holds."""
REMEDY = "write text or whole numbers"


def distinct(column: Column) -> tuple[np.ndarray, pa.Array]:
    """Number a column's values.

    Args:
        column: Text, numbers or null.

    Returns:
        The number of each row's value, int64 [n], and -1 for null; and the values as text, floats
        by `float_text`.

    Raises:
        ValueError: The column's type is another.
    """
    values = column.values
    if pa.types.is_null(values.type):
        return np.full(len(values), -1), pa.array([], pa.string())
    if not _is_readable(values.type):
        raise column.refused_type(REMEDY)
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    encoded = encoded.unify_dictionaries()
    if encoded.num_chunks == 0:
        return np.zeros(0, np.int64), pa.array([], pa.string())
    indices = np.concatenate(
        [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    )
    texts = _texts(encoded.chunk(0).dictionary)
    codes, used = pd.factorize(np.where(indices < 0, -1, indices), use_na_sentinel=True)
    return _without_nulls(codes, np.asarray(used), texts)


def _without_nulls(
    codes: np.ndarray, used: np.ndarray, texts: pa.Array
) -> tuple[np.ndarray, pa.Array]:
    """Codes of values that occur alone; the value -1 becomes the code -1."""
    codes = codes.astype(np.int64, copy=False)
    null = np.flatnonzero(used < 0)
    if len(null):
        (gap,) = null
        codes = np.where(codes == gap, -1, codes - (codes > gap))
        used = np.delete(used, gap)
    return codes, texts.take(pa.array(used))


def _is_readable(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return text or number


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        exact = exact_below(values.type)
        return pa.array([float_text(value, exact) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def exact_below(kind: pa.DataType) -> float:
    """From here on floats of a type leave out whole numbers."""
    return 2.0 ** BITS[kind.bit_width]


def float_text(value: float, exact: float = EXACT) -> str:
    """A float as text: 12 for 12.0, and an exponent where a whole number's digits are not exact."""
    if not value.is_integer():
        return repr(value)
    return str(int(value)) if abs(value) < exact else f"{value:e}"
