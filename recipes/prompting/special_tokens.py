"""The special tokens that prompts need from a tokenizer."""

from typing import Literal

from transformers import PreTrainedTokenizerBase

Special = Literal["bos", "eos", "pad", "unk"]


def find_id(tokenizer: PreTrainedTokenizerBase, name: Special) -> int | None:
    """The id of a special token, or None if the tokenizer does not define it."""
    found = getattr(tokenizer, f"{name}_token_id")
    return found if isinstance(found, int) else None


def required_id(tokenizer: PreTrainedTokenizerBase, name: Special) -> int:
    """The id of a special token.

    Raises:
        ValueError: The tokenizer does not define it.
    """
    found = find_id(tokenizer, name)
    if found is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no {name} token: choose another "
            f"adapt.llm, or set {name}_token in its tokenizer_config.json"
        )
    return found


def placeholder_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that stands at a slot's position: unk, else pad, else eos.

    Raises:
        ValueError: The tokenizer has none of them.
    """
    for name in ("unk", "pad"):
        if (found := find_id(tokenizer, name)) is not None:
            return found
    return required_id(tokenizer, "eos")
