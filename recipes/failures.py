"""What a user can mend, as one line: the file or field, and the remedy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import ArgumentError
from safetensors import SafetensorError

from recipes.type_errors import worded

USER_ERRORS = (ArgumentError, ValueError, OSError, SafetensorError)
"""What becomes one line, and a lack of memory; a traceback of anything else is a fault of this
package."""
SIZES = "the batch_size of the stage that was running, or the size that was raised last"
MEMORY = ("out of memory", "can't allocate memory", "size calculation overflowed")
"""What PyTorch says where memory does not suffice, in a RuntimeError."""
ROOM = "make room, and the same command goes on"
PERMISSION = "get the permission, or choose another folder, and the same command goes on"
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EIO: ROOM,
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: PERMISSION,
    errno.ENOTDIR: "a file stands where a folder should be: choose another folder",
    errno.EEXIST: "a file stands where a folder should be: choose another folder",
    errno.EISDIR: "a folder stands where a file should be: choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`), and the same command goes on",
    errno.ENFILE: "raise the system's limit of open files, and the same command goes on",
}
"""What helps against an error of the system."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, on whatever device."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY)
    return said or isinstance(error, MemoryError)


def stumble(error: Exception) -> str:
    """What a language model stumbled over when it was tried, in a few words.

    Raises:
        Exception: The same error, if memory does not suffice: no other model mends that.
    """
    if lacks_memory(error):
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def one_line(error: BaseException) -> str:
    """An error of `USER_ERRORS`, or a lack of memory, as one line."""
    text = getattr(error, "message", None) or str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        what = f"{error.filename}: {error.strerror}" if error.filename else text
        text = f"{what}; {REMEDIES[error.errno]}"
    elif isinstance(error, ArgumentError):
        text = worded(text)
    elif lacks_memory(error):
        text = f"memory does not suffice ({text[:200]}): lower {SIZES}, and run the command again"
    elif isinstance(error, SafetensorError):
        text = f"a safetensors file is damaged: {text}"
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def concerning(what: str) -> Iterator[None]:
    """Let a user's mistake say first what it concerns; an error of the system names its file."""
    try:
        yield
    except OSError as error:
        if error.errno in REMEDIES:
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"{what}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
