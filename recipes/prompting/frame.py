"""What stands around a prompt and its answer: bos and eos, or the turns of a chat template.

A chat template is rendered once, with marks in place of the texts, and cut at the marks. So its own
tokens are those of the template, wherever a text stands, a text that spells them stays plain, and
the answer begins where the prompt's tokens end, as everywhere else. A template writes its bos
itself or has none; none is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from recipes.prompting.plain_text import reserved_ids
from recipes.prompting.special_tokens import find_id, placeholder_id, required_id
from recipes.prompting.tokens import tokenised

ChatTemplate = Literal["auto", "none"]

INSTRUCTION = "Answer with one title from the list, exactly as it is written, and nothing else."
"""The system turn, where a template has one."""
OPEN_INSTRUCTION = "Answer with one title, exactly as it is written, and nothing else."
"""The same for prompts that list no candidates."""
TODAY = "{% macro strftime_now(form) %}01 Jan 2026{% endmacro %}"
"""Put before a template, so that one that writes today's date gives the same prompts every day."""
_SYSTEM, _PROMPT, _ANSWER = "\ue005", "\ue006", "\ue007"


@dataclass(frozen=True)
class Frame:
    """Tokens around prompt and answer."""

    opening: Sequence[int]
    """Before the prompt."""
    closing: Sequence[int]
    """Between prompt and answer."""
    end: int
    """The token that ends an answer."""
    lead: str | None
    """What is put before an answer's text; None stands for a blank where the tokenizer needs it."""
    placeholder: int
    """The token at a slot's position, which is read where no vector takes its place."""


def frame_of(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: ChatTemplate = "none",
    cache: Path | None = None,
    *,
    listed: bool = True,
) -> Frame:
    """The frame of a tokenizer's prompts.

    Args:
        tokenizer: The language model's tokenizer.
        chat_template: `auto` takes the tokenizer's chat template, if it has one.
        cache: See `tokenised`.
        listed: Whether the prompts list candidates, of which the system turn speaks.

    Raises:
        ValueError: The tokenizer has no eos token, or its chat template cannot be used.
    """
    if chat_template == "auto" and tokenizer.chat_template:
        return _chat(tokenizer, INSTRUCTION if listed else OPEN_INSTRUCTION, cache)
    bos, eos = find_id(tokenizer, "bos"), required_id(tokenizer, "eos")
    opening = [] if bos is None else [bos]
    return Frame(opening, [], eos, None, _placeholder(tokenizer, cache))


def _chat(tokenizer: PreTrainedTokenizerBase, instruction: str, cache: Path | None) -> Frame:
    """The turns of a chat: an instruction if there is a system turn, the prompt, the answer."""
    prompt = {"role": "user", "content": _PROMPT}
    chat = [{"role": "system", "content": _SYSTEM}, prompt]
    text, _ = _rendered_or_why(tokenizer, chat)
    before, _, after = text.partition(_PROMPT)
    if before.count(_SYSTEM) != 1 or _SYSTEM in after:
        chat = [prompt]
        text, why = _rendered_or_why(tokenizer, chat)
        if text.count(_PROMPT) != 1:
            raise ValueError(
                f"the chat template of the tokenizer {tokenizer.name_or_path!r} does not write "
                f"what a user says{why}: set adapt.chat_template none, or choose another adapt.llm"
            )
    opening, closing = text.split(_PROMPT)
    ids: list[int] = []
    if _SYSTEM in opening:
        before, opening = opening.split(_SYSTEM)
        ids = [*_markup(tokenizer, before), *tokenised(tokenizer, [instruction], cache)[0]]
    lead = "" if closing != closing.rstrip() else None
    return Frame(
        [*ids, *_markup(tokenizer, opening)],
        _markup(tokenizer, closing),
        _end(tokenizer, chat),
        lead,
        _newline(tokenizer, cache),
    )


def _placeholder(tokenizer: PreTrainedTokenizerBase, cache: Path | None) -> int:
    """The paper's placeholder, unk, where it stands for unknown text and nothing else."""
    if "unk" in str(tokenizer.unk_token).lower():
        return required_id(tokenizer, "unk")
    return _newline(tokenizer, cache)


def _newline(tokenizer: PreTrainedTokenizerBase, cache: Path | None) -> int:
    """The token of a line's end, where there is one.

    Byte-level tokenizers need no unk, and name as such, or as pad, the token that ends a document
    (GPT-2's and SmolLM2's unk, Qwen's pad are `<|endoftext|>`). What follows it has lost the
    prompt, wherever no vector takes its place: in text-only batches, and below the layer at which
    vectors enter.
    """
    try:
        ids = tokenised(tokenizer, ["\n"], cache)[0]
    except ValueError:
        ids = []
    known = len(ids) == 1 and ids[0] not in reserved_ids(tokenizer)
    return ids[0] if known else placeholder_id(tokenizer)


def _end(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> int:
    """The first token of its own that the template puts after an answer, else eos."""
    answered = [*chat, {"role": "assistant", "content": _ANSWER}]
    text, _ = _rendered_or_why(tokenizer, answered, add_generation_prompt=False)
    if text.count(_ANSWER) == 1:
        reserved = reserved_ids(tokenizer)
        for token in _markup(tokenizer, text.split(_ANSWER)[1]):
            if token in reserved:
                return token
    return required_id(tokenizer, "eos")


def _rendered_or_why(
    tokenizer: PreTrainedTokenizerBase,
    chat: list[dict[str, str]],
    *,
    add_generation_prompt: bool = True,
) -> tuple[str, str]:
    """The chat as text, "" if the template refuses it; and then why, in brackets."""
    try:
        return _rendered(tokenizer, chat, add_generation_prompt), ""
    except ValueError as error:
        return "", f" ({error})"


def _rendered(
    tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], add_generation_prompt: bool
) -> str:
    """The chat as text (ValueError: the template refuses it, or stumbles over anything)."""
    try:
        found = tokenizer.apply_chat_template(
            chat,
            chat_template=TODAY + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
        )
    except Exception as error:  # such as a content of text, or a division by zero
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{type(error).__name__}: {said}") from error
    assert isinstance(found, str)
    return found


def _markup(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a piece of the template, whose special tokens are meant."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
