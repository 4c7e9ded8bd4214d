"""JSON lines: an object a line.

pyarrow reads a block of lines fast where each field has one plain type. Where it does not, Python
reads the block's lines one by one: it takes a field of several types, and names the line of what
is wrong. Both give the same text.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from recipes.datasets.sources.distinct import EXACT, float_text
from recipes.datasets.sources.source import Column, Source, shown
from recipes.datasets.sources.text_files import open_text

LOOKED_AT = 1000
"""Objects at the beginning of the file whose fields are its columns."""
BLOCK = 2**24
"""Letters that are read at once."""
PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64()}
"""Types of a field that pyarrow reads."""
FROM_ARRAY = (
    'python -c "import json,sys; [print(json.dumps(row)) for row in json.load(sys.stdin)]" '
    "< OLD > NEW.jsonl"
)
FROM_PYTHON = (
    'python -c "import ast,json,sys; [print(json.dumps(ast.literal_eval(line))) for line in '
    'sys.stdin]" < OLD > NEW.jsonl'
)


class JsonLines(Source):
    """A file with a JSON object a line.

    Args:
        path: The file; one that ends in .gz is unpacked.
        encoding: Its encoding.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self.name = str(path)
        self.path = path
        self.encoding = encoding

    def columns(self) -> list[str]:
        """The fields of the first objects."""
        names: dict[str, None] = {}
        for _, found in islice(self._all_objects(), LOOKED_AT):
            names |= dict.fromkeys(found)
        if not names:
            raise ValueError(f'{self.path} holds no object: write one a line, {{"user": ..}}')
        return list(names)

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Read some fields as text; a missing field and null are empty."""
        parts: dict[str, list[pa.Array]] = {name: [] for name in names}
        first = 1
        with open_text(self.path, self.encoding) as file:
            while lines := file.readlines(BLOCK):
                found = _plain(lines, names)
                found = self._exact(lines, first, names) if found is None else found
                for array, arrays in zip(found, parts.values(), strict=True):
                    arrays.append(array.dictionary_encode())
                first += len(lines)
        return {
            name: Column(name, pa.chunked_array(arrays).unify_dictionaries(), self._where)
            for name, arrays in parts.items()
        }

    def _exact(self, lines: list[str], first: int, names: Sequence[str]) -> list[pa.Array]:
        """The fields of a block of lines, `first` being the number of its first line."""
        found = list(self._objects(lines, first))
        return [self._texts(name, found) for name in names]

    def _all_objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with open_text(self.path, self.encoding) as file:
            yield from self._objects(file, 1)

    def _objects(self, lines: Iterable[str], first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number and object of each line that is not blank."""
        for number, line in enumerate(lines, first):
            if line.isspace():
                continue
            try:
                found = json.loads(line, object_pairs_hook=_fields)
            except (ValueError, RecursionError) as error:
                raise self._no_json(number, line, error) from error
            if not isinstance(found, dict):
                remedy = f"; convert it: {FROM_ARRAY}" if isinstance(found, list) else ""
                raise ValueError(
                    f"{self.path}, line {number}: {shown(found)} is no object with fields{remedy}"
                )
            yield number, found

    def _no_json(self, number: int, line: str, error: Exception) -> ValueError:
        if isinstance(error, _FieldTwiceError):
            return ValueError(f"{self.path}, line {number}: {error}")
        start = line.lstrip()
        remedy = "write an object a line"
        if start.startswith("["):
            remedy = f"this is an array, not an object a line; convert it: {FROM_ARRAY}"
        elif start.startswith(("{'", "{u'")):
            remedy = f"this is Python's notation; convert it: {FROM_PYTHON}"
        known = isinstance(error, json.JSONDecodeError)
        why = f"{error.msg} in column {error.colno}" if known else "nested too deeply"
        return ValueError(
            f"{self.path}, line {number}: {shown(line.strip())} is no JSON ({why}): {remedy}"
        )

    def _texts(self, name: str, found: Sequence[tuple[int, dict[str, Any]]]) -> pa.Array:
        texts = [self._text(line, name, one.get(name)) for line, one in found]
        try:
            return pa.array(texts, pa.string())
        except UnicodeEncodeError:
            row = next(n for n, text in enumerate(texts) if not _is_unicode(text))
            raise ValueError(
                f"{self.path}, line {found[row][0]}: field {name!r} holds {shown(texts[row])}, "
                "half a character: write the whole"
            ) from None

    def _text(self, line: int, name: str, value: object) -> str:
        if isinstance(value, str):
            return value
        if value is None:
            return ""
        if isinstance(value, bool | list | dict):
            raise ValueError(
                f"{self.path}, line {line}: field {name!r} holds {shown(value)}: write text or a "
                "number"
            )
        return float_text(value) if isinstance(value, float) else str(value)

    def _where(self, row: int) -> str:
        line = next(line for n, (line, _) in enumerate(self._all_objects()) if n == row)
        return f"{self.path}, line {line}"


def _plain(lines: list[str], names: Sequence[str]) -> list[pa.Array] | None:
    """The fields of a block of lines as text, or None where pyarrow does not do."""
    full = [line for line in lines if not line.isspace()]
    try:
        one = json.loads(full[0])
        types = [PLAIN[type(one[name])] for name in names]
        table = arrow_json.read_json(
            BytesIO("".join(full).encode()),
            arrow_json.ReadOptions(block_size=BLOCK),
            arrow_json.ParseOptions(
                explicit_schema=pa.schema(list(zip(names, types, strict=True))),
                unexpected_field_behavior="ignore",
            ),
        )
    except (pa.ArrowInvalid, ValueError, LookupError, TypeError, RecursionError):
        return None
    arrays = [table[name].combine_chunks() for name in names]
    if len(table) != len(full) or not all(map(_is_exact, arrays)):
        return None
    return [_as_text(array) for array in arrays]


def _is_exact(array: pa.Array) -> bool:
    """Whether no float stands for a whole number that it cannot hold."""
    if not pa.types.is_floating(array.type):
        return True
    return bool((np.abs(array.drop_null().to_numpy()) < EXACT).all())  # false for NaN


def _as_text(array: pa.Array) -> pa.Array:
    if pa.types.is_floating(array.type):
        texts = ["" if value is None else float_text(value) for value in array.to_pylist()]
        return pa.array(texts, pa.string())
    return array.cast(pa.string()).fill_null("")


class _FieldTwiceError(ValueError):
    """An object has a field twice, of which JSON's readers silently drop one."""


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise _FieldTwiceError(f"the field {twice!r} stands twice: leave one out")
    return found


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
