"""Asks a model behind an OpenAI-compatible endpoint, and keeps every answer.

Each answer is a file of its own, written whole as soon as it has come, and named after everything
that was asked. So an answer is paid for once: whatever was answered before is read from its file,
after a kill, in another run of the same folder, or with other settings of the evaluation.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
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
"""How often a request is repeated that met a rate limit, a fault of the server or no connection.
The client waits as long as `Retry-After` says, or else from half a second up to eight."""
AT_ONCE = 4
"""Requests under way at once."""
LONGEST_WAIT = 8.0
"""Seconds before an answer that is none is asked for again, at most."""

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
        found = {path: read_json(path) for path in wanted}
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
            for one in as_completed(asked):
                one.result()
                bar.update()

    def _ask(self, client: "OpenAI", path: Path, chat: Sequence[Message], failed: Event) -> None:
        """Ask and keep the answer, unless another request has failed for good."""
        if failed.is_set():
            return
        try:
            with self._explained():
                found = self._answer(client, chat)
        except BaseException:
            failed.set()
            raise
        asked = {"endpoint": self.url, "model": self.model, "request": dict(self.request)}
        write_json(path, {**asked, "messages": [dict(turn) for turn in chat], **found})

    def _answer(self, client: "OpenAI", chat: Sequence[Message]) -> Mapping[str, Any]:
        from openai import BadRequestError

        for turn in range(RETRIES + 1):
            if turn:
                time.sleep(min(2.0 ** (turn - 2), LONGEST_WAIT))
            messages: Any = [dict(one) for one in chat]
            try:
                completion: Any = client.chat.completions.create(
                    model=self.model, messages=messages, extra_body=dict(self.request)
                )
            except BadRequestError as error:
                if error.code != "content_filter":
                    raise
                return self._entry("", "content_filter", _said(error))
            except ValueError:  # the body is no JSON
                continue
            found = self._read(completion)
            if found is not None:
                return found
        raise ConnectionError(
            f"{self.url} sends something else than chat completions, {RETRIES + 1} times: is it an "
            f"OpenAI-compatible endpoint? {self._kept}"
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
            raise ConnectionError(
                f"{self.url}: {said} (asked up to {RETRIES + 1} times). {self._kept}"
            ) from None

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

    return OpenAI(base_url=endpoint.url, api_key=endpoint.key or "none", max_retries=RETRIES)


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
