"""Tokenises texts that spell special tokens, as the plain text that they are.

`split_special_tokens` makes a fast tokenizer cut "</s>" like any other text, but a model that holds
its special tokens as ordinary pieces (Unigram, as of SentencePiece) then finds the piece again. So
a text with such a token in it is tokenised once more, by a copy of the tokenizer whose special
tokens are spelled with a character that no title may hold.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from recipes.prompting.special_tokens import find_id

HIDDEN = "\ue003"
"""Put before a special token's spelling; `one_line_titles` refuses titles that hold it."""
_MARKUP = re.compile(r"<.*>|\[.*\]", re.DOTALL)


def reserved_ids(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that a text does not become by spelling them, and their spellings.

    These are the special tokens, and added tokens that look like markup, such as `<think>`.
    """
    added = tokenizer.added_tokens_decoder
    found = {
        index: token.content
        for index, token in added.items()
        if token.special or _MARKUP.fullmatch(token.content)
    }
    names = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return found | {index: str(name) for index, name in names}


def as_plain_text(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: Sequence[list[int]]
) -> list[list[int]]:
    """The token ids of texts, without tokens that only a spelling has brought about.

    Args:
        tokenizer: The language model's tokenizer.
        texts: Plain texts.
        tokens: The ids that the tokenizer gives them, `split_special_tokens` being set.

    Raises:
        ValueError: A text becomes a special token in spite of everything.
    """
    reserved, found = reserved_ids(tokenizer), list(tokens)
    # An unknown character becomes unk too, and rightly so.
    touched = [place for place, ids in enumerate(found) if not reserved.keys().isdisjoint(ids)]
    if touched and isinstance(tokenizer.backend_tokenizer, Tokenizer):
        plain = _without(tokenizer.backend_tokenizer, set(reserved.values()))
        encoded = plain.encode_batch([texts[place] for place in touched], add_special_tokens=False)
        for place, one in zip(touched, encoded, strict=True):
            found[place] = one.ids
    forbidden = reserved.keys() - {find_id(tokenizer, "unk")}
    for place in touched:
        for index in forbidden.intersection(found[place]):
            raise ValueError(
                f"the text {texts[place]!r} spells {reserved[index]!r}, which the tokenizer "
                f"{tokenizer.name_or_path!r} reads as a special token: spell the title otherwise, "
                "or choose another adapt.llm"
            )
    return found


def _without(tokenizer: Tokenizer, names: set[str]) -> Tokenizer:
    """The same tokenizer, with the same ids, but with other spellings of some tokens."""
    spelled = {name: HIDDEN + name for name in names}
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    parts["model"] = _model_without(parts["model"], spelled)
    parts["added_tokens"] = [
        one | {"content": spelled.get(one["content"], one["content"])}
        for one in parts["added_tokens"]
    ]
    parts |= {"post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(parts))


def _model_without(model: dict[str, Any], spelled: Mapping[str, str]) -> dict[str, Any]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {spelled.get(name, name): index for name, index in vocabulary.items()}
    else:
        model["vocab"] = [[spelled.get(name, name), score] for name, score in vocabulary]
    if model.get("unk_token") in spelled:
        model["unk_token"] = spelled[model["unk_token"]]
    if model.get("merges"):
        # A merge of or to a token that is spelled otherwise now leads nowhere.
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [p for p in pairs if spelled.keys().isdisjoint((*p, "".join(p)))]
    return model
