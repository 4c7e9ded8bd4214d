"""Chat models behind an OpenAI-compatible endpoint, such as the GPT-4 of the iLoRA paper."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.experiment import EvaluateConfig, Experiment
from recipes.llm.chat_endpoint import OPENAI, ChatEndpoint, Message, check_client
from recipes.methods.method import Arm, Method
from recipes.methods.settings import positive_int, refuse_unknown
from recipes.prompting.frame import INSTRUCTION
from recipes.prompting.prompts import one_line_titles, text_prompt
from recipes.prompting.written import first_line
from recipes.run import Run
from recipes.scoring.predictions import Predictions
from recipes.scoring.rows import EvaluatedRows, evaluated_rows

HISTORY, KEY = "prompt_history", "key_variable"
SETTINGS = ("model", "endpoint", "request", HISTORY, KEY)
OPENAI_KEY = "OPENAI_API_KEY"
"""The environment variable of the key for OpenAI's endpoint."""
DEFAULT_REQUEST = {"max_tokens": 64, "temperature": 0}
"""Greedy, and as long as the reference lets its own models write."""
OURS = ("model", "messages", "stream", "n")
"""Fields of a request that the method sets."""


class Chat(Method):
    """A chat model that is told the text prompt of the other language models, and answers.

    Its turns are those of a chat template: the instruction as the system's, the prompt as the
    user's. An answer's first line is compared with the titles by the same rule. There are no
    likelihoods, so that the answer stands first and all other candidates are tied behind it; after
    an answer that names none, all are.
    """

    name = "chat"
    summary = "a chat model behind an OpenAI-compatible endpoint, on the text prompt (GPT-4)"
    about = About(
        title="Chat model",
        meaning="a chat model behind an endpoint that answers the text prompt, untrained",
        order=42,
        ranks_by="answer, the others tied",
        colour="#999999",
        line=(0, (4, 2)),
    )
    reads_candidates = True
    untold = frozenset({"endpoint", "request", KEY})

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Endpoint, model and request; which variable holds the key makes no difference."""
        owner = f"method {self.name}"
        refuse_unknown(owner, given, SETTINGS)
        for name in ("model", "endpoint", KEY):
            value = given.get(name)
            if name in given and not (isinstance(value, str) and value.strip()):
                raise ValueError(f"{owner}: {name}={value!r} must be a name")
        if not given.get(KEY, OPENAI_KEY).isidentifier():
            raise ValueError(  # without the value, which may be a key
                f"{owner}: {KEY} must be the name of an environment variable, such as {OPENAI_KEY}"
            )
        if "model" not in given:
            raise ValueError(f"{owner} names no model: write {{method: chat, model: NAME}} in arms")
        url = given.get("endpoint", OPENAI).rstrip("/")
        _check_url(owner, url)
        if experiment.evaluate.decoding != "free":
            raise ValueError(
                f"{owner}: evaluate.decoding={experiment.evaluate.decoding!r} cannot be imposed on "
                "an endpoint: set it to free, or leave the arm out"
            )
        shown = given.get(HISTORY, experiment.adapt.prompt_history)
        return {
            "model": given["model"],
            "endpoint": url,
            "request": _checked_request(owner, given.get("request", DEFAULT_REQUEST)),
            HISTORY: positive_int(owner, HISTORY, shown),
        }

    def check(self, run: Run, arm: Arm) -> None:
        """Ask for the first row's answer, which is kept.

        Raises:
            FileNotFoundError: The client is not installed.
            ValueError: There is no key, or the endpoint refuses what it is asked.
            ConnectionError: The endpoint does not answer.
        """
        check_client()
        first = evaluated_rows(run.data, run.experiment.evaluate).chunk(0, 1)
        self._endpoint(run, arm).answers(chats(run, arm, first), f"try {arm.name}")

    def inputs(self, run: Run, arm: Arm, seed: int) -> dict[str, str]:
        """The prepared rows, candidates and titles. What an endpoint serves has no checksum."""
        own = {"items.parquet": run.prepared.files["items.parquet"]}
        return super().inputs(run, arm, seed) | own

    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> Predictions:
        """Answers, without scores."""
        found = self._endpoint(run, arm).answers(chats(run, arm, rows), f"ask {arm.name}")
        print(f"[{arm.name}] {_told(found)}", flush=True)
        texts = [first_line(one["answer"]) for one in found]
        cut = [_is_cut_short(one) for one in found]
        return Predictions(None, texts, cut, titles=one_line_titles(run.data.titles))

    def _endpoint(self, run: Run, arm: Arm) -> ChatEndpoint:
        return ChatEndpoint(
            url=arm.settings["endpoint"],
            model=arm.settings["model"],
            request=arm.settings["request"],
            key=_key(arm),
            folder=(run.shared or run.folder) / "answers",
        )


def chats(run: Run, arm: Arm, rows: EvaluatedRows) -> list[Sequence[Message]]:
    """What is said to the model about each row."""
    titles = one_line_titles(run.data.titles)
    histories = run.data.split(rows.split).histories[rows.rows, -arm.settings[HISTORY] :]
    found: list[Sequence[Message]] = []
    for history, candidates in zip(histories.tolist(), rows.candidates.tolist(), strict=True):
        seen = [titles[item] for item in history if item != PADDING]
        prompt = text_prompt(seen, [titles[item] for item in candidates])
        turns = {"system": INSTRUCTION, "user": prompt}
        found.append([{"role": role, "content": text} for role, text in turns.items()])
    return found


def _key(arm: Arm) -> str | None:
    """The key, from the environment.

    OpenAI's goes to OpenAI's endpoint alone, unless the arm names its variable.
    """
    own = arm.settings["endpoint"] == OPENAI
    variable = arm.given.get(KEY, OPENAI_KEY if own else None)
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"method chat: the environment variable {variable} holds no key for "
            f"{arm.settings['endpoint']}: set it, or name another as key_variable"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(  # without the key
            f"method chat: the environment variable {variable} holds something else than a key: "
            "set it to ASCII characters without blanks or line breaks between them"
        )
    return key


def _check_url(owner: str, url: str) -> None:
    """Refuse what is no address, and an address with a key in it, which files would name."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known, parts = False, urlsplit("")
    if not known:
        raise ValueError(
            f"{owner}: endpoint={url!r} must be an address such as http://localhost:8000/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"{owner}: endpoint holds more than an address, and files name it: leave out what "
            "stands before @ and after ?, and give a key in an environment variable (key_variable)"
        )


def _checked_request(owner: str, request: Any) -> dict[str, Any]:
    """The further fields of requests (ValueError: they are no fields, or not JSON, or ours)."""
    if not isinstance(request, Mapping) or not all(isinstance(name, str) for name in request):
        raise ValueError(
            f"{owner}: request={request!r} must hold fields, such as {{max_tokens: 64}}"
        )
    for name in OURS:
        if name in request:
            raise ValueError(f"{owner}: request holds {name}, which the method sets: leave it out")
    try:
        return json.loads(json.dumps(dict(request), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{owner}: request={request!r} is not JSON: {error}") from error


def _is_cut_short(one: Mapping[str, Any]) -> bool:
    """Whether the limit of tokens ended an answer within its first line."""
    return one["finish_reason"] == "length" and "\n" not in one["answer"].lstrip()


def _told(found: Sequence[Mapping[str, Any]]) -> str:
    """What came back, in one line: what is no whole answer, and how many tokens there were."""
    kinds = {
        "cut at the limit of tokens": sum(one["finish_reason"] == "length" for one in found),
        "refused": sum(
            one["refusal"] is not None or one["finish_reason"] == "content_filter" for one in found
        ),
        "empty": sum(not one["answer"].strip() for one in found),
    }
    tokens = {
        name: sum(one["usage"].get(name, 0) for one in found)
        for name in ("prompt_tokens", "completion_tokens")
    }
    odd = "".join(f", {count} {kind}" for kind, count in kinds.items() if count)
    return (
        f"{len(found)} answers{odd}; {tokens['prompt_tokens']:,} tokens read, "
        f"{tokens['completion_tokens']:,} written"
    )
