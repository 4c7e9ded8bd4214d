"""Files of text, plain or gzip: their lines, and what is wrong with one that cannot be decoded."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

GZIP = ".gz"
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
"""What Python raises where a gzip file is cut off or is none."""


def open_bytes(path: Path) -> BinaryIO:
    """A file's content, unpacked if it ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == GZIP else path.open("rb"))


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """A file's lines, with their ends as they are; a byte order mark is left out.

    Raises:
        ValueError: The file cannot be unpacked or decoded; the line is named.
    """
    known = "utf-8-sig" if is_utf8(encoding) else encoding
    opened = gzip.open if path.suffix == GZIP else open
    try:
        with opened(path, "rt", encoding=known, newline="") as file:
            yield cast(TextIO, file)
    except DAMAGED as error:
        raise damaged(path) from error
    except UnicodeError as error:
        raise undecodable(path, encoding) from error


def is_utf8(encoding: str) -> bool:
    """Whether this is a name of UTF-8."""
    return codecs.lookup(encoding).name == "utf-8"


def damaged(path: Path) -> ValueError:
    """The error of a gzip file that cannot be unpacked to its end."""
    return ValueError(
        f"{path} is cut off or no gzip file: fetch or pack it again (`gzip -t` tests it)"
    )


def undecodable(path: Path, encoding: str) -> ValueError:
    """The error of a file that is not in the encoding; it names the line of the first bad byte."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with open_bytes(path) as file:
        start = file.read(2)
        file.seek(0)
        try:
            for raw in file:
                line += decoder.decode(raw).count("\n")
            decoder.decode(b"", final=True)
            byte = ""
        except UnicodeDecodeError as error:
            byte = f" (byte 0x{error.object[error.start]:02x})"
        except UnicodeError:
            byte = ""
    likely = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "cp1252"
    return ValueError(
        f"{path}, line {line}: this is not {encoding}{byte}; name the file's encoding, such as "
        f"--prepare.custom.encoding {likely}"
    )
