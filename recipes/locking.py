"""One command at a time writes into a folder.

The lock is the system's, on an open file (`flock`): it ends with the process, however that ends, so
no stale lock has to be cleared. The file's text only tells whoever finds it locked who holds it.
"""

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from recipes.artifacts import filled, naming

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None

LOCK = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""


class InUseError(ValueError):
    """Another command writes into the folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing.

    Where the file system has no locks, a warning is printed and the block runs without one.

    Raises:
        InUseError: Another process, or another block of this one, holds it; the message names the
            folder and the holder.
        OSError: The lock cannot be written, or the block cannot write something; the error names a
            file or the folder.
    """
    path = folder / LOCK
    with filled(folder), _opened(path) as stream:
        try:
            with naming(path):
                stream.truncate(0)
                stream.write(json.dumps(_myself()).encode())
            with naming(folder):
                yield
        finally:
            path.unlink(missing_ok=True)


def _opened(path: Path) -> BinaryIO:
    """The lock's file, opened and locked.

    It has no buffer: what a full disk refuses would be written, and refused, once more on closing.
    """
    while True:
        stream = path.open("a+b", buffering=0)
        if not _locked(stream):
            with stream:
                raise InUseError(
                    f"{path.parent} is in use{_holder(stream)}: wait until that has ended, or "
                    "choose another --out"
                )
        if _is_at(stream, path):
            return stream
        stream.close()  # its last holder has removed it meanwhile


def _is_at(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _locked(stream: BinaryIO) -> bool:
    """Whether the lock could be taken, or there is none to take."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        print(f"{stream.name}: no locks here ({error.strerror}); start nothing else in this folder")
    return True


def _myself() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(sys.argv),
    }


def _holder(stream: BinaryIO) -> str:
    """Who holds the lock; empty if the file does not tell."""
    stream.seek(0)
    try:
        found = json.loads(stream.read())
        return " by process {process} on {host} since {since} ({command})".format(**found)
    except (ValueError, TypeError, KeyError):
        return ""
