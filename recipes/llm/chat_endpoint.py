"""Asks a model behind an OpenAI-compatible endpoint, and keeps every answer.

Each answer is a file of its own, written whole as soon as it has come, and named after everything
that was asked. So an answer is paid for once: whatever was answered before is read from its file,
after a kill, in another run of the same folder, or with other settings of the evaluation.
"""

import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from recipes.artifacts import read_json, write_json

if TYPE_CHECKING:
    from openai import APIError, OpenAI

OPENAI = "https://api.openai.com/v1"
"""OpenAI's own endpoint."""
INSTALL = "pip install 'peft-ilora[chat]'"
RETRIES = 10
"""How often a request is repeated that met a rate limit, a fault of the server or no connection, or
brought no answer. It is not the client that repeats them: its waits cannot be ended by an error of
another request or by Ctrl-C, and it gives up where `Retry-After` is more than two minutes."""
AT_ONCE = 4
"""Requests under way at once."""
LONGEST_WAIT = 8.0
"""Seconds before a request is repeated, at most, where no `Retry-After` says how long to wait."""
PATIENCE = 1800.0
"""Seconds after which a request is not repeated again, however few its repetitions."""
TIMEOUT = 600.0
"""Seconds that an answer may take."""

NO_CREDIT = "insufficient_quota"
"""What OpenAI's rate limit says where no waiting helps."""
FIELDS = {"answer", "finish_reason", "refusal", "answered_by", "usage"}
"""Of a kept answer, beside what was asked."""

Message = Mapping[str, str]
"""`role` and `content`."""


@dataclass(frozen=True, kw_only=True)
class ChatEndpoint:
    """A chat model behind an endpoint, and the folder of its answers."""

    url: str
    """What precedes `/chat/completions`."""
    model: str
    """The model's name at the endpoint."""
    request: Mapping[str, Any]
    """Further fields of every request, such as `max_tokens`."""
    key: str | None = field(repr=False)
    """The key; it is sent to the endpoint, and written nowhere. None for an endpoint without."""
    folder: Path

    def answers(self, chats: Sequence[Sequence[Message]], label: str) -> list[Mapping[str, Any]]:
        """The answer to each chat, in order: kept ones, and new ones, which are kept.

        Args:
            chats: What is said to the model, one turn after the other.
            label: Label of the progress bar.

        Returns:
            For each chat `answer`, the text, "" if there is none; `finish_reason`; `refusal`, if
            the model or the endpoint refused to answer; `answered_by`, the model as the endpoint
            calls it; and `usage`, numbers of tokens.

        Raises:
            FileNotFoundError: The client is not installed.
            ValueError: The endpoint refuses the key, the model or the request, or a kept answer is
                damaged.
            ConnectionError: The endpoint cannot be reached, sends something else than answers, or
                has no time, however often it was asked. What has been answered is kept.
        """
        wanted = {self._file(chat): chat for chat in chats}
        missing = {path: chat for path, chat in wanted.items() if not path.exists()}
        if missing:
            self._ask_all(missing, len(wanted), label)
        found = {path: _kept_answer(path) for path in wanted}
        return [found[self._file(chat)] for chat in chats]

    def _file(self, chat: Sequence[Message]) -> Path:
        asked = [self.url, self.model, dict(self.request), [dict(turn) for turn in chat]]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.json"

    def _ask_all(self, missing: Mapping[Path, Sequence[Message]], total: int, label: str) -> None:
        check_client()
        failed = Event()
        with (
            _client(self) as client,
            tqdm(total=total, initial=total - len(missing), desc=label) as bar,
            _workers() as workers,
        ):
            asked: list[Future[None]] = [
                workers.submit(self._ask, client, path, chat, failed)
                for path, chat in missing.items()
            ]
            try:
                for one in as_completed(asked):
                    one.result()
                    bar.update()
            except BaseException:
                failed.set()  # ends the waits of the others
                raise

    def _ask(self, client: "OpenAI", path: Path, chat: Sequence[Message], failed: Event) -> None:
        """Ask and keep the answer, unless another request has failed for good."""
        if failed.is_set():
            return
        try:
            with self._explained():
                found = self._answer(client, chat, failed)
        except BaseException:
            failed.set()
            raise
        if found is None:
            return
        asked = {"endpoint": self.url, "model": self.model, "request": dict(self.request)}
        write_json(path, {**asked, "messages": [dict(turn) for turn in chat], **found})

    def _answer(
        self, client: "OpenAI", chat: Sequence[Message], failed: Event
    ) -> Mapping[str, Any] | None:
        """The answer, however often it takes to ask; None if another request fails meanwhile."""
        from openai import APIError

        began, turn = time.monotonic(), 0
        while True:
            asked_for, said = None, "it sends something else than chat completions"
            try:
                completion = self._completion(client, chat)
                if (found := self._read(completion)) is not None:
                    return found
                said += _error_inside(completion)
            except APIError as error:
                if error.code == "content_filter":
                    return self._entry("", "content_filter", _said(error))
                if not _passes(error):
                    raise
                asked_for, said = _retry_after(error), _said(error)
            except (ValueError, RecursionError):  # the body is no JSON, or nested without end
                pass
            wait = _backoff(turn) if asked_for is None else asked_for
            turn += 1
            if turn > RETRIES or time.monotonic() - began + wait > PATIENCE:
                often = f"asked {turn} times" if turn > 1 else "asked once"
                if asked_for is not None:
                    often += f"; it says to wait for {asked_for:,.0f} s"
                raise ConnectionError(
                    f"{self.url}: {self._clean(said)[:300]} ({often}). {self._kept}"
                )
            if _pause(failed, wait):
                return None

    def _completion(self, client: "OpenAI", chat: Sequence[Message]) -> Any:
        messages: Any = [dict(one) for one in chat]
        return client.chat.completions.create(
            model=self.model, messages=messages, extra_body=dict(self.request)
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the client's errors into one line each, without the key."""
        import openai

        try:
            yield
        except openai.APIError as error:
            said = self._clean(_said(error))[:300]
            status = getattr(error, "status_code", None)
            if status in (401, 403):
                raise ValueError(
                    f"{self.url} refuses the key ({status}: {said}): put a valid one into the "
                    "environment variable that the arm's key_variable names"
                ) from None
            if status == 402 or error.code == NO_CREDIT:
                raise ValueError(
                    f"{self.url} wants to be paid first ({status}: {said}). {self._kept}"
                ) from None
            if status == 404:
                raise ValueError(
                    f"{self.url} knows no model {self.model!r}, or no chat completions ({said}): "
                    "choose another model or endpoint"
                ) from None
            if status is not None and status < 500 and status not in (408, 409, 429):
                raise ValueError(
                    f"{self.url} refuses the request ({status}: {said}): change the arm's request "
                    f"({dict(self.request)}), or lower its prompt_history"
                ) from None
            raise ConnectionError(f"{self.url}: {said}. {self._kept}") from None

    def _read(self, completion: Any) -> Mapping[str, Any] | None:
        """The first choice of a completion; None if it is no completion."""
        choices = getattr(completion, "choices", None)
        first = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(first, "message", None)
        text = getattr(message, "content", message)
        if message is None or not isinstance(text, (str, type(None))) or text is message:
            return None
        usage = getattr(completion, "usage", None)
        counts = {
            name: count
            for name in ("prompt_tokens", "completion_tokens")
            if isinstance(count := getattr(usage, name, None), int)
        }
        reason, refusal = getattr(first, "finish_reason", None), getattr(message, "refusal", None)
        return self._entry(text or "", reason, refusal, getattr(completion, "model", None), counts)

    def _entry(
        self,
        text: str,
        reason: Any,
        refusal: Any,
        model: Any = None,
        usage: Mapping[str, int] | None = None,
    ) -> Mapping[str, Any]:
        return {
            "answer": self._clean(text),
            "finish_reason": reason if isinstance(reason, str) else None,
            "refusal": self._clean(refusal) if isinstance(refusal, str) else None,
            "answered_by": self._clean(model) if isinstance(model, str) else None,
            "usage": dict(usage or {}),
        }

    def _clean(self, text: str) -> str:
        """The text without the key, should an endpoint repeat it, and without halves of surrogate
        pairs, which JSON can spell and UTF-8 cannot.
        """
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(self.key, "***") if self.key else text

    @property
    def _kept(self) -> str:
        return f"Answers so far are kept in {self.folder}; the same command goes on from there"


def check_client() -> None:
    """Refuse a missing client (FileNotFoundError)."""
    if find_spec("openai") is None:
        raise FileNotFoundError(f"chat models are asked by the package openai: {INSTALL}")


def _client(endpoint: ChatEndpoint) -> "OpenAI":
    from openai import OpenAI

    from recipes.llm.bounded_client import bounded_client

    http = bounded_client(TIMEOUT)
    made = OpenAI(
        base_url=endpoint.url,
        api_key=endpoint.key or "none",
        timeout=http.timeout,
        max_retries=0,
        http_client=http,
    )
    if endpoint.url != OPENAI:  # what the environment says of OpenAI's is nobody else's business
        made.organization = made.project = None
        made._custom_headers = {}  # of OPENAI_CUSTOM_HEADERS, which the client adds on its own
    return made


def _kept_answer(path: Path) -> Mapping[str, Any]:
    """A kept answer (ValueError: its file is damaged)."""
    found = read_json(path)
    whole = isinstance(found, dict) and found.keys() >= FIELDS
    if not whole or not isinstance(found["answer"], str) or not isinstance(found["usage"], dict):
        raise ValueError(f"{path} is damaged, or no kept answer: delete it to ask again")
    return found


def _passes(error: "APIError") -> bool:
    """Whether asking again may help."""
    status = getattr(error, "status_code", None)
    if status is None:  # no connection, no time, or half a body
        return True
    told = getattr(error, "response").headers.get("x-should-retry")  # noqa: B009
    if told == "false" or error.code == NO_CREDIT:
        return False
    return told == "true" or status in (408, 409, 429) or status >= 500


def _retry_after(error: "APIError") -> float | None:
    """The seconds that an error's `Retry-After` asks for, which may be a date; None without one."""
    response = getattr(error, "response", None)
    text = "" if response is None else response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _backoff(turn: int) -> float:
    """Seconds to wait after repetition `turn`: half a second and doubling, less up to a quarter."""
    return min(2.0 ** (turn - 1), LONGEST_WAIT) * random.uniform(0.75, 1.0)


def _pause(failed: Event, seconds: float) -> bool:
    """Wait, unless another request has failed for good, and say whether one has."""
    return failed.wait(seconds)


def _error_inside(completion: Any) -> str:
    """What an answer says that is an error, though its status is that of an answer."""
    error = getattr(completion, "error", None)
    message = error.get("message") if isinstance(error, dict) else error
    return f" ({' '.join(message.split())})" if isinstance(message, str) else ""


def _said(error: "APIError") -> str:
    """What an error says, in one line, without the status that the client puts before it."""
    status = f"Error code: {getattr(error, 'status_code', None)} - "
    return " ".join(error.message.removeprefix(status).split())


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads; when the block ends early, what is not under way yet is never asked."""
    workers = ThreadPoolExecutor(AT_ONCE)
    try:
        yield workers
    finally:
        workers.shutdown(cancel_futures=True)
