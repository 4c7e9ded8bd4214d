"""Chat models behind an endpoint: a local server plays OpenAI's, at its best and at its worst."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.arms import comparison
from recipes.artifacts import read_json, read_table
from recipes.experiment import (
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    SyntheticConfig,
)
from recipes.llm import chat_endpoint
from recipes.llm.chat_endpoint import RETRIES, ChatEndpoint
from recipes.methods import METHODS
from recipes.pipeline import Pipeline

openai = pytest.importorskip("openai")

SECRET = "sk-very-secret"
Reply = tuple[int, dict[str, str], bytes | Iterator[bytes]]


def reply(body: Any, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Type": "application/json", **named}, json.dumps(body).encode()


def completion(text: Any, finish: str = "stop", **message: Any) -> Reply:
    first = {"index": 0, "finish_reason": finish}
    first["message"] = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
    kept = {"id": "1", "object": "chat.completion", "created": 1, "model": "fake-1"}
    return reply({**kept, "choices": [first], "usage": usage})


def fault(status: int, said: str = "no", code: str | None = None, **headers: str) -> Reply:
    return reply({"error": {"message": said, "code": code}}, status, **headers)


class Server(ThreadingHTTPServer):
    """An endpoint that answers as `script` says."""

    daemon_threads = True
    script: Callable[[int, dict[str, Any]], Reply]
    """Number of the request and its body -> what is sent back."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.headers: set[str] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.headers.update(self.headers.keys())
            number = len(self.server.asked) - 1
        if self.path != "/v1/chat/completions":
            status, headers, sent = fault(404, f"no {self.path}")
        else:
            status, headers, sent = self.server.script(number, body)
        self.send_response(status)
        length = {"Content-Length": str(len(sent))} if isinstance(sent, bytes) else {}
        for name, value in {**length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in (sent,) if isinstance(sent, bytes) else sent:
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited before a request was repeated; none of them passes."""
    found: list[float] = []

    def pause(failed: threading.Event, seconds: float) -> bool:
        found.append(seconds)
        return failed.is_set()

    monkeypatch.setattr(chat_endpoint, "_pause", pause)
    return found


@pytest.fixture
def endpoint(server: Server, tmp_path: Path) -> ChatEndpoint:
    return ChatEndpoint(
        url=server.url, model="m", request={"max_tokens": 5}, key=SECRET, folder=tmp_path / "kept"
    )


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def texts(endpoint: ChatEndpoint, *prompts: str) -> list[str]:
    return [one["answer"] for one in endpoint.answers([said(one) for one in prompts], "ask")]


def echo(number: int, body: dict[str, Any]) -> Reply:
    return completion(body["messages"][-1]["content"])


# ------------------------------------------------------------------ what is asked and kept


def test_answers_come_in_order_and_are_asked_for_once(server: Server, endpoint: ChatEndpoint):
    server.script = echo
    assert texts(endpoint, "a", "b", "a") == ["a", "b", "a"]
    asked = sorted(server.asked, key=lambda body: body["messages"][0]["content"])
    assert asked == [{"model": "m", "messages": said(one), "max_tokens": 5} for one in ("a", "b")]
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert texts(endpoint, "b", "c") == ["b", "c"]
    assert len(server.asked) == 3
    for other in ({"model": "n"}, {"request": {"max_tokens": 6}}):
        texts(replace(endpoint, **other), "a")
    assert len(server.asked) == 5


def test_a_kept_answer_says_what_was_asked_and_never_the_key(
    server: Server, endpoint: ChatEndpoint
):
    server.script = lambda number, body: completion(f"a\udc80 {SECRET}", system_fingerprint=SECRET)
    assert texts(endpoint, "a") == ["a? ***"]
    (path,) = endpoint.folder.iterdir()
    assert SECRET not in path.read_text(encoding="utf-8") and SECRET not in repr(endpoint)
    assert read_json(path) == {
        "endpoint": server.url,
        "model": "m",
        "request": {"max_tokens": 5},
        "messages": said("a"),
        "answer": "a? ***",
        "finish_reason": "stop",
        "refusal": None,
        "answered_by": "fake-1",
        "usage": {"prompt_tokens": 20, "completion_tokens": 3},
    }


def test_an_interruption_loses_no_answer(
    server: Server, endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chat_endpoint, "AT_ONCE", 1)
    prompts = [f"prompt {number}" for number in range(6)]
    server.script = lambda number, body: echo(number, body) if number != 3 else fault(401)
    with pytest.raises(ValueError, match="refuses the key"):
        texts(endpoint, *prompts)
    assert len(list(endpoint.folder.iterdir())) == 3
    before = len(server.asked)
    server.script = echo
    assert texts(endpoint, *prompts) == prompts
    assert len(server.asked) - before == 3
    assert not [path for path in endpoint.folder.iterdir() if path.name.startswith(".")]


def test_a_damaged_answer_is_named(server: Server, endpoint: ChatEndpoint):
    server.script = echo
    texts(endpoint, "a")
    (path,) = endpoint.folder.iterdir()
    for text in (path.read_text()[:20], "[1]", "{}", '{"answer": "a", "usage": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            texts(endpoint, "a")


# ------------------------------------------------------------------ answers that are none


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (completion(None), ("", "stop", None)),
        (completion(""), ("", "stop", None)),
        (completion("a title that is cu", "length"), ("a title that is cu", "length", None)),
        (completion(None, refusal="I cannot"), ("", "stop", "I cannot")),
        (completion("", "content_filter"), ("", "content_filter", None)),
        (fault(400, "filtered", "content_filter"), ("", "content_filter", "filtered")),
    ],
    ids=["null", "empty", "cut", "refusal", "filtered", "filtered before"],
)
def test_what_a_model_does_not_say_is_kept_as_such(
    server: Server, endpoint: ChatEndpoint, sent: Reply, kept: tuple[str, ...]
):
    server.script = lambda number, body: sent
    (found,) = endpoint.answers([said("a")], "ask")
    assert tuple(found[name] for name in ("answer", "finish_reason", "refusal")) == kept
    assert endpoint.answers([said("a")], "ask") == [found] and len(server.asked) == 1


GARBAGE: dict[str, Reply] = {
    "page": (200, {"Content-Type": "text/html"}, b"<html>login</html>"),
    "no JSON": (200, {"Content-Type": "application/json"}, b'{"choices": [{"mess'),
    "no bytes": (200, {"Content-Type": "application/json"}, b""),
    "no UTF-8": (200, {"Content-Type": "application/json"}, b'{"choices": "\xff"}'),
    "a list": reply([1, 2]),
    "null": reply(None),
    "an error inside": reply({"error": {"message": "overloaded"}}),
    "no choices": reply({"choices": []}),
    "odd choices": reply({"choices": ["text"]}),
    "no message": reply({"choices": [{"index": 0}]}),
    "odd message": reply({"choices": [{"message": "text"}]}),
    "odd content": reply({"choices": [{"message": {"content": {"text": "a"}}}]}),
    "nested without end": (200, {"Content-Type": "application/json"}, b"[" * 200_000),
    "half a body": (200, {"Content-Type": "application/json", "Content-Length": "90"}, b"{"),
}


@pytest.mark.parametrize("kind", list(GARBAGE))
def test_garbage_is_never_an_answer(
    server: Server, endpoint: ChatEndpoint, waits: list[float], kind: str
):
    server.script = lambda number, body: GARBAGE[kind] if number < 2 else completion("right")
    assert texts(endpoint, "a") == ["right"]
    assert len(server.asked) == 3 and len(waits) == 2
    server.script = lambda number, body: GARBAGE[kind]
    with pytest.raises(ConnectionError, match="Answers so far are kept in .*kept; the same"):
        texts(endpoint, "a", "b")
    assert texts(endpoint, "a") == ["right"]


# ------------------------------------------------------------------ limits, faults, refusals


def test_a_rate_limit_is_waited_for_as_long_as_it_says(
    server: Server, endpoint: ChatEndpoint, waits: list[float]
):
    busy = [fault(429, Retry_After="7"), fault(503), fault(429, Retry_After="3"), fault(500)]
    server.script = lambda number, body: busy[number] if number < 4 else completion("right")
    assert texts(endpoint, "a") == ["right"]
    assert waits[0] == 7 and waits[2] == 3
    assert 0 < waits[1] <= 8 and 0 < waits[3] <= 8


def test_a_date_and_a_long_wait_are_waited_for(
    server: Server, endpoint: ChatEndpoint, waits: list[float]
):
    late = formatdate(time.time() + 90, usegmt=True)
    past = formatdate(time.time() - 90, usegmt=True)
    busy = [fault(429, Retry_After=one) for one in (late, "600", past, "soon", "nan", "0")]
    server.script = lambda number, body: busy[number] if number < 6 else completion("right")
    assert texts(endpoint, "a") == ["right"]
    assert 85 < waits[0] <= 90 and waits[1:3] == [600, 0] and waits[5] == 0
    assert 3 <= waits[3] <= 4 and 6 <= waits[4] <= 8  # as without: after 4 and after 5 repetitions


def test_a_wait_beyond_all_patience_is_told_at_once(
    server: Server, endpoint: ChatEndpoint, waits: list[float]
):
    server.script = lambda number, body: fault(429, "tomorrow", Retry_After="86400")
    with pytest.raises(ConnectionError, match="tomorrow.*asked once; it says to wait for 86,400 s"):
        texts(endpoint, "a")
    assert not waits


def test_a_server_that_keeps_a_connection_alive_is_given_up_too(
    server: Server, endpoint: ChatEndpoint, waits: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chat_endpoint, "TIMEOUT", 0.3)
    monkeypatch.setattr(chat_endpoint, "PATIENCE", 0.5)
    released = threading.Event()

    def blanks() -> Iterator[bytes]:
        for _ in range(500):
            yield b" "
            if released.wait(0.02):
                return

    server.script = lambda number, body: (200, {"Content-Type": "application/json"}, blanks())
    began = time.monotonic()
    try:
        with pytest.raises(ConnectionError, match="timed out.*asked (once|2 times)"):
            texts(endpoint, "a")
    finally:
        released.set()
    assert time.monotonic() - began < 5


def test_a_server_that_hangs_is_given_up(
    server: Server, endpoint: ChatEndpoint, waits: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chat_endpoint, "TIMEOUT", 0.1)
    monkeypatch.setattr(chat_endpoint, "PATIENCE", 0.15)
    released = threading.Event()

    def script(number: int, body: dict[str, Any]) -> Reply:
        released.wait(5)
        return completion("too late")

    server.script = script
    try:
        with pytest.raises(ConnectionError, match="timed out.*asked (once|2 times)"):
            texts(endpoint, "a")
    finally:
        released.set()
    assert not endpoint.folder.exists()


@pytest.mark.parametrize("status", [401, 429])
def test_what_ends_one_request_ends_the_waits_of_the_others(
    server: Server, endpoint: ChatEndpoint, status: int
):
    """A rate limit would have three of them wait for ten minutes."""
    waiting = threading.Semaphore(0)

    def script(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][0]["content"] != "last":
            waiting.release()
            return fault(429, Retry_After="600")
        for _ in range(3):
            waiting.acquire(timeout=5)
        return fault(status, "no more", "insufficient_quota")

    server.script = script
    began = time.monotonic()
    with pytest.raises(ValueError, match="no more"):
        texts(endpoint, "a", "b", "c", "last")
    assert time.monotonic() - began < 60 and len(server.asked) == 4


def test_ctrl_c_ends_the_waits_too(
    server: Server, endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(asked: Any) -> Iterator[Any]:
        while len(server.asked) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_endpoint, "as_completed", interrupted)
    server.script = lambda number, body: fault(429, Retry_After="600")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        texts(endpoint, "a", "b")
    assert time.monotonic() - began < 60 and len(server.asked) == 2


@pytest.mark.parametrize("status", [429, 500])
def test_an_endpoint_without_time_is_given_up_in_the_end(
    server: Server, endpoint: ChatEndpoint, waits: list[float], status: int
):
    server.script = lambda number, body: fault(status, f"no time for {SECRET}")
    with pytest.raises(ConnectionError, match=r"no time for \*\*\*.*Answers so far are kept"):
        texts(endpoint, "a")
    assert len(server.asked) == RETRIES + 1 == len(waits) + 1
    assert not endpoint.folder.exists()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (fault(401, f"wrong key {SECRET}"), r"refuses the key \(401: .*wrong key \*\*\*.*key_var"),
        (fault(403), "refuses the key"),
        (fault(402, "top up"), r"wants to be paid first \(402: top up\).*Answers so far are kept"),
        (fault(429, "used up", "insufficient_quota"), r"wants to be paid first \(429: used up"),
        (fault(404), "knows no model 'm', or no chat completions"),
        (fault(400, "too long", "context_length_exceeded"), "refuses the request .400: .*too long"),
        (fault(422), r"change the arm's request \(\{'max_tokens': 5\}\), or lower its prompt_hist"),
    ],
    ids=["key", "forbidden", "bill", "quota", "model", "too long", "request"],
)
def test_what_no_repetition_would_mend_is_refused_at_once(
    server: Server, endpoint: ChatEndpoint, waits: list[float], sent: Reply, message: str
):
    server.script = lambda number, body: sent
    with pytest.raises(ValueError, match=message):
        texts(endpoint, "a")
    assert len(server.asked) == 1 and not waits


@pytest.mark.parametrize(("told", "often"), [("false", 1), ("true", RETRIES + 1)])
def test_a_server_says_whether_asking_again_may_help(
    server: Server, endpoint: ChatEndpoint, waits: list[float], told: str, often: int
):
    server.script = lambda number, body: fault(500 if told == "false" else 418, X_Should_Retry=told)
    with pytest.raises(ConnectionError, match="Answers so far are kept"):
        texts(endpoint, "a")
    assert len(server.asked) == often


def test_an_error_in_place_of_an_answer_is_told_without_the_key(
    server: Server, endpoint: ChatEndpoint, waits: list[float]
):
    server.script = lambda number, body: reply({"error": {"message": f"no {SECRET}", "code": 402}})
    with pytest.raises(ConnectionError, match=r"than chat completions \(no \*\*\*\)"):
        texts(endpoint, "a")


def test_what_the_environment_says_of_openai_goes_to_openai_alone(
    server: Server, endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_ORG_ID", "ours")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "mine")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Ours: theirs\nAuthorization: Bearer other")
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "of OpenAI")
    server.script = echo
    texts(endpoint, "a")
    texts(replace(endpoint, key=None), "b")
    foreign = {"openai-organization", "openai-project", "x-ours"}
    assert not foreign & {one.lower() for one in server.headers}
    assert server.keys == [f"Bearer {SECRET}", "Bearer none"]
    own = chat_endpoint._client(replace(endpoint, url=chat_endpoint.OPENAI))
    assert (own.organization, own.project) == ("ours", "mine")
    assert str(own.base_url).rstrip("/") == chat_endpoint.OPENAI


def test_an_address_where_nobody_answers(endpoint: ChatEndpoint, waits: list[float]):
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9/v1: Connection error"):
        texts(replace(endpoint, url="http://127.0.0.1:9/v1"), "a")
    assert len(waits) == RETRIES


# ------------------------------------------------------------------ the method


def test_a_missing_client_is_named(endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch):
    found = util.find_spec
    monkeypatch.setattr(
        chat_endpoint, "find_spec", lambda name: None if name == "openai" else found(name)
    )
    with pytest.raises(FileNotFoundError, match=r"pip install 'peft-ilora\[chat\]'"):
        texts(endpoint, "a")


REFUSED = [
    ({}, "names no model: write {method: chat, model: NAME} in arms"),
    ({"model": ""}, "model='' must be a name"),
    ({"model": "m", "endpoint": "localhost:80"}, "endpoint='localhost:80' must be an address"),
    ({"model": "m", "endpoint": "http://a:b@c/v1"}, "endpoint holds more than an address"),
    ({"model": "m", "endpoint": "http://c/v1?key=1"}, "endpoint holds more than an address"),
    ({"model": "m", "request": [1]}, r"request=\[1\] must hold fields"),
    ({"model": "m", "request": {"n": 2}}, "request holds n, which the method sets"),
    ({"model": "m", "request": {"a": float("nan")}}, "is not JSON"),
    ({"model": "m", "prompt_history": 0}, "prompt_history=0 must be a positive int"),
    ({"model": "m", "key_variable": None}, "key_variable=None must be a name"),
    ({"model": "m", "key_variable": SECRET}, "key_variable must be the name of an environment var"),
    ({"model": "m", "temperature": 1}, "method chat has no setting 'temperature'"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[said for _, said in REFUSED])
def test_impossible_settings_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        METHODS["chat"].configure(Experiment(), given)


def test_decoding_cannot_be_imposed_on_an_endpoint():
    constrained = Experiment(evaluate=EvaluateConfig(decoding="candidates"))
    with pytest.raises(ValueError, match="evaluate.decoding='candidates' cannot be imposed"):
        METHODS["chat"].configure(constrained, {"model": "m"})


def test_the_key_and_its_variable_are_no_settings():
    one, other = (
        METHODS["chat"].configure(Experiment(), {"model": "m", **given})
        for given in ({}, {"key_variable": "MINE"})
    )
    assert one == other and one["endpoint"] == "https://api.openai.com/v1"


def experiment(out: Path, url: str, **arm: Any) -> Experiment:
    return Experiment(
        out=str(out),
        arms=[{"method": "chat", "name": "chat", "model": "m", "endpoint": url, **arm}],
        prepare=PrepareConfig(
            protocol="chronological", num_candidates=5, synthetic=SyntheticConfig(num_users=40)
        ),
        recommender=RecommenderConfig(hidden_size=8, max_epochs=1),
        evaluate=EvaluateConfig(ks=[1], bootstrap_samples=100),
    )


def options(body: dict[str, Any]) -> list[str]:
    system, user = body["messages"]
    assert system["role"] == "system" and user["role"] == "user"
    first = user["content"].partition("\n")[0]
    return first.removeprefix("Pick the next one from:").split(";")


def test_a_run_compares_the_answers(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Every third answer is in other letters, every third cut short, every third empty."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    seen: dict[str, int] = {}

    def script(number: int, body: dict[str, Any]) -> Reply:
        place = seen.setdefault(body["messages"][1]["content"], len(seen))
        titles = options(body)
        said = (f"\n{titles[2].upper()}  \nbecause", f"{titles[2]}, perhaps", "")
        return completion(said[place % 3], "stop" if place % 3 == 2 else "length")

    server.script = script
    results = Pipeline.of(experiment(tmp_path / "run", server.url)).run_all()
    table = read_table(tmp_path / "run" / "predictions.parquet")
    table = table[table["method"] == "chat"].reset_index()
    assert len(server.asked) == len(table) == len(list((tmp_path / "run" / "answers").iterdir()))
    assert set(server.keys) == {"Bearer none"}
    assert "answers, " in (out := capsys.readouterr().out) and " empty; " in out
    valid = table["valid"].to_numpy(dtype=bool)
    assert 0 < valid.sum() < len(table)
    for line in table.itertuples():
        wanted = [0.0, 0, 1, 0, 0] if line.valid else [0] * 5
        assert line.scores.tolist() == wanted
        assert line.tied == (1 if line.better == 0 and line.valid else 4 if line.valid else 5)
    entries = {one["key"]: one for one in results["metrics"] if one["method"] == "chat"}
    assert entries["valid_ratio/generation"]["value"] == pytest.approx(valid.mean())
    told = table["invalid"].dropna().value_counts().to_dict()
    assert set(told) == {"cut short", "empty"}  # the first kind ends with its line
    (kinds,) = (one["kinds"] for one in results["invalid"] if one["method"] == "chat")
    assert {name: count for name, count in kinds.items() if count} == told
    right = (table["predicted_item"] == table["target"]).fillna(False).to_numpy(dtype=bool)
    assert entries["hit_ratio@1/generation/total"]["value"] == pytest.approx(right.mean())
    expected = (right + ~valid / 5).mean()
    assert entries["hit_ratio@1/ranking"]["value"] == pytest.approx(expected)
    assert results["llm"] is None
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "No language model is involved" not in page and "no language model is adapted" in page
    assert "What a chat model names comes first" in page and "as its `request` says" in page
    assert "Chat model, model m" in {one["title"] for one in results["arms"]}

    # Another interval asks for nothing, and nor do the same rows in another order of settings.
    before = len(server.asked)
    again = experiment(tmp_path / "run", server.url)
    again.evaluate.confidence = 0.9
    again.evaluate.batch_size = 2
    Pipeline.of(again).run_all()
    assert len(server.asked) == before
    for path in (tmp_path / "run").rglob("*.json"):
        assert SECRET not in path.read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "run" / "answers")
    Pipeline.of(again).report()
    assert len(server.asked) == before


def test_the_first_row_is_tried_before_anything_long(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.script = lambda number, body: fault(404, "no such model")
    tried = experiment(tmp_path, server.url)
    tried.arms = [*(tried.arms or []), {"method": "sasrec"}]
    with pytest.raises(ValueError, match="knows no model 'm'"):
        Pipeline.of(tried).run_all()
    assert len(server.asked) == 1 and not (tmp_path / "recommenders").exists()
    keyed = experiment(tmp_path, server.url, key_variable="MINE")
    monkeypatch.setenv("MINE", "")
    with pytest.raises(ValueError, match="the environment variable MINE holds no key for http"):
        Pipeline.of(keyed).run_all()
    for broken in (f"{SECRET}\n{SECRET}", f"{SECRET}–", f"{SECRET} {SECRET}"):
        monkeypatch.setenv("MINE", broken)
        with pytest.raises(ValueError, match="holds something else than a key") as found:
            Pipeline.of(keyed).run_all()
        assert SECRET not in str(found.value)
    monkeypatch.setenv("MINE", f" {SECRET}\n")
    with pytest.raises(ValueError, match="knows no model"):
        Pipeline.of(keyed).run_all()
    assert server.keys == ["Bearer none", f"Bearer {SECRET}"]


def test_prompts_are_those_of_the_other_language_models(server: Server, tmp_path: Path):
    """What the model is told is the text that `zero-shot` encodes, with the chat's own turns."""
    from recipes.methods.chat import chats
    from recipes.scoring.rows import evaluated_rows

    made = experiment(tmp_path, server.url, prompt_history=2)
    made.arms = [*(made.arms or []), {"method": "zero-shot", "prompt_history": 2}]
    pipeline = Pipeline.of(made)
    pipeline.prepare()
    run = pipeline.run
    (arm,) = [one for one in comparison(made).arms if one.method.name == "chat"]
    rows = evaluated_rows(run.data, made.evaluate)
    told = [chat[-1]["content"] for chat in chats(run, arm, rows)]
    store = run.outlined_prompts
    prompts = store.prompts(rows.split, 2, user_slot=False, slots=False).input_ids
    decoded = store.tokenizer.batch_decode(
        [prompts.row(row) for row in rows.rows.tolist()], skip_special_tokens=True
    )
    assert told == decoded
    assert all(
        len(options({"messages": [{"role": "system"}, chat[-1]]})) == 5
        for chat in chats(run, arm, rows)
    )
    assert np.unique(told).size > 1
