# pyarrow.compute makes its functions when it is imported, so no checker sees them.
# pyright: reportAttributeAccessIssue=false
"""A column of ids: kept as text, letter by letter, and numbered in order of first appearance.

One user must not become two because a program has written 12 here and 12.0 there, as pandas does
to whole numbers beside gaps. If all ids of a column are numbers, 12.0 is 12. Else ids that differ
only so, by white space around them, or by how Unicode composes a letter (é), are refused.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipes.datasets.sources.distinct import distinct
from recipes.datasets.sources.source import Column, shown

MISSING = ("", "nan", "NaN", "NAN", "NaT", "<NA>", "NA", "N/A", "None", "null", "NULL")
"""What programs write for a missing value."""
NUMBER = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
WHOLE = r"^([+-]?\d+)\.0*$"


@dataclass(frozen=True)
class Ids:
    """The ids of n rows."""

    codes: np.ndarray
    """int64 [n]: the number of each row's id, from 0 in order of first appearance."""
    keys: pa.Array
    """Text [k]: each id."""


def ids(column: Column) -> Ids:
    """Number the ids of a column.

    Raises:
        ValueError: An id is missing, is a fraction or has lost digits, or two differ only in how
            they are written; the message names the line.
    """
    codes, keys = distinct(column)
    _refuse(column, codes, codes < 0, "give every row an id, or leave the row out")
    missing = pc.is_in(pc.utf8_trim_whitespace(keys), pa.array(MISSING, pa.string()))
    _refuse(column, codes, _rows(codes, missing), "a missing id: give one, or leave the row out")
    numbers = pc.match_substring_regex(keys, NUMBER)
    if not pc.all(numbers).as_py():
        _refuse_twins(column, codes, keys)
        return Ids(codes, keys)
    lost = pc.match_substring_regex(keys, "[eE]")
    _refuse(column, codes, _rows(codes, lost), "a rounded number: store ids as text")
    parts = pc.and_(pc.match_substring(keys, "."), pc.invert(pc.match_substring_regex(keys, WHOLE)))
    _refuse(column, codes, _rows(codes, parts), "a fraction is no id: is this another column?")
    whole = pc.replace_substring_regex(keys, WHOLE, r"\1").dictionary_encode()
    return Ids(whole.indices.to_numpy()[codes].astype(np.int64), whole.dictionary)


def _rows(codes: np.ndarray, marked: pa.Array) -> np.ndarray:
    """Whether each row's value is marked: bool [n]."""
    return marked.to_numpy(zero_copy_only=False)[codes]


def _refuse(column: Column, codes: np.ndarray, wrong: np.ndarray, remedy: str) -> None:
    if wrong.any():
        raise column.refusal(int(wrong.argmax()), remedy)


def _refuse_twins(column: Column, codes: np.ndarray, keys: pa.Array) -> None:
    plain = pc.utf8_trim_whitespace(pc.utf8_normalize(keys, "NFC"))
    plain = pc.replace_substring_regex(plain, WHOLE, r"\1")
    numbers = plain.dictionary_encode().indices.to_numpy()  # 0, 1, 2, .. if all are different
    again = np.flatnonzero(np.diff(numbers, prepend=-1) <= 0)
    if not len(again):
        return
    second = int(again[0])
    first = int((numbers == numbers[second]).argmax())
    row = int((codes == second).argmax())
    other = column.where(int((codes == first).argmax()))
    raise column.refusal(
        row, f"the same as {shown(keys[first].as_py())} ({other})? Write one id in one way"
    )
