"""The stand-in's tokenizer: a byte-level BPE trained on titles and prompts."""

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recipes.prompting.prompts import text_prompt

UNKNOWN, BEGIN, END, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPECIAL = [UNKNOWN, BEGIN, END, PAD]


def new_tokenizer(titles: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the titles.

    Its alphabet is all bytes, so it can encode any title; frequent words become one token.

    Args:
        titles: Title of each item, by item id.
        vocab_size: Maximum size of the vocabulary; few titles yield a smaller one.

    Raises:
        ValueError: `vocab_size` is too small for all bytes and the special tokens.
    """
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL)
    if vocab_size < smallest:
        raise ValueError(
            f"adapt.stand_in.vocab_size={vocab_size} must be at least {smallest}: all bytes and "
            f"{len(SPECIAL)} special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(titles), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
    )


def _texts(titles: Sequence[str], prompt_titles: int = 20) -> Iterator[str]:
    """Texts of prompts in which every title occurs equally often, so that no item is favoured."""
    for _ in range(2):
        for start in range(0, len(titles), prompt_titles):
            chunk = titles[start : start + prompt_titles]
            yield text_prompt(chunk, chunk)
