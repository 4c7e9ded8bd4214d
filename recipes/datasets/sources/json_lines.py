"""JSON lines: an object a line, read one by one."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from recipes.datasets.sources.distinct import float_text
from recipes.datasets.sources.source import Column, Source, shown
from recipes.datasets.sources.text_files import open_text

LOOKED_AT = 1000
"""Objects at the beginning of the file whose fields are its columns."""
AT_ONCE = 2**16
"""Objects whose values are held as Python's."""
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
        for _, found in islice(self._objects(), LOOKED_AT):
            names |= dict.fromkeys(found)
        if not names:
            raise ValueError(f'{self.path} holds no object: write one a line, {{"user": ..}}')
        return list(names)

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Read some fields as text; a missing field and null are empty."""
        parts: dict[str, list[pa.Array]] = {name: [] for name in names}
        objects = self._objects()
        while part := list(islice(objects, AT_ONCE)):
            lines, found = zip(*part, strict=True)
            for name, arrays in parts.items():
                arrays.append(self._encoded(lines, name, [one.get(name) for one in found]))
        return {
            name: Column(name, pa.chunked_array(arrays).unify_dictionaries(), self._where)
            for name, arrays in parts.items()
        }

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number from 1 and object of each line that is not blank."""
        decode = json.JSONDecoder(object_pairs_hook=_fields).decode
        with open_text(self.path, self.encoding) as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                try:
                    found = decode(line)
                except (ValueError, RecursionError) as error:
                    raise self._no_json(number, line, error) from error
                if type(found) is not dict:
                    remedy = f"; convert it: {FROM_ARRAY}" if isinstance(found, list) else ""
                    raise ValueError(
                        f"{self.path}, line {number}: {shown(found)} is no object with fields"
                        f"{remedy}"
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

    def _encoded(self, lines: Sequence[int], name: str, values: list[Any]) -> pa.Array:
        """The values as text, dictionary-encoded."""
        if set(map(type, values)) != {str}:
            pairs = zip(lines, values, strict=True)
            values = [self._text(line, name, value) for line, value in pairs]
        try:
            return pa.array(values, pa.string()).dictionary_encode()
        except UnicodeEncodeError:
            row = next(n for n, text in enumerate(values) if not _is_unicode(text))
            raise ValueError(
                f"{self.path}, line {lines[row]}: field {name!r} holds {shown(values[row])}, half "
                "a character: write the whole"
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
        line = next(line for n, (line, _) in enumerate(self._objects()) if n == row)
        return f"{self.path}, line {line}"


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
