"""An HTTP client that gives up an answer which takes too long as a whole.

The timeouts of httpx2 bound the wait for each piece of an answer. A server that sends a blank now
and then, to keep the connection alive, would never run into them.
"""

import time
from collections.abc import Iterator
from typing import cast

import httpx2
from openai import DefaultHttpxClient

ENDS = "peft_ilora_ends"
"""Extension of a request: the time by which its answer must be whole."""


def bounded_client(seconds: float) -> httpx2.Client:
    """A client as the package `openai` makes it, which waits `seconds` for an answer as a whole.

    An answer that is not whole by then is a `httpx2.ReadTimeout`, as one that never begins is: at
    the first piece that comes after that time, so after twice the time at most.
    """

    def starts(request: httpx2.Request) -> None:
        request.extensions[ENDS] = time.monotonic() + seconds

    return DefaultHttpxClient(
        timeout=httpx2.Timeout(seconds, connect=5.0),
        event_hooks={"request": [starts], "response": [_bound]},
    )


def _bound(response: httpx2.Response) -> None:
    stream = cast(httpx2.SyncByteStream, response.stream)
    response.stream = _Bounded(stream, response.request.extensions[ENDS])


class _Bounded(httpx2.SyncByteStream):
    """The pieces of an answer, until a time."""

    def __init__(self, stream: httpx2.SyncByteStream, ends: float) -> None:
        self._stream = stream
        self._ends = ends

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if time.monotonic() > self._ends:
                raise httpx2.ReadTimeout("the answer is not whole in time")
            yield piece

    def close(self) -> None:
        self._stream.close()
