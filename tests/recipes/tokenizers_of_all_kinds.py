"""Small fast tokenizers of the kinds that language models have, trained on the given titles."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
NAMES = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
Titles = Sequence[str]


def _texts(titles: Titles) -> list[str]:
    frame = "Pick the next one from: {0}; {0}\nChosen so far, oldest first: {0}\nNext: {0}"
    return [frame.format(title) for title in titles] * 4


def _wrapped(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(NAMES | names))


def byte_level(
    titles: Titles, normalizer=None, prefix: bool = False, special: Sequence[str] = SPECIAL
) -> PreTrainedTokenizerFast:
    """Like GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(titles), trainer)
    return _wrapped(tokenizer)


def unigram(
    titles: Titles, scheme="always", special: Sequence[str] = SPECIAL
) -> PreTrainedTokenizerFast:
    """Like SentencePiece models, with NFKC."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[*special], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_texts(titles), trainer)
    return _wrapped(tokenizer)


def legacy_llama(titles: Titles) -> PreTrainedTokenizerFast:
    """Like Llama 2: word markers by a normalizer, and a template that adds a bos."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(blanks)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(_texts(titles), trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(tokenizer)


def word_piece(titles: Titles) -> PreTrainedTokenizerFast:
    """Like BERT, uncased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(_texts(titles), trainer)
    return _wrapped(tokenizer)


def clip(titles: Titles) -> PreTrainedTokenizerFast:
    """Like CLIP: lower case, and a marker at the end of words."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(_texts(titles), trainer)
    return _wrapped(tokenizer)


def _named(make: Callable, **names: str) -> Callable[[Titles], PreTrainedTokenizerFast]:
    def made(titles: Titles) -> PreTrainedTokenizerFast:
        tokenizer = make(titles)
        for name, token in names.items():
            setattr(tokenizer, name, token)
        return tokenizer

    return made


def _adds_bos_and_eos(titles: Titles) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(titles)
    template = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def _truncating(titles: Titles) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(titles)
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=3, pad_token="<pad>")
    tokenizer.model_max_length = 4
    return tokenizer


KINDS: dict[str, Callable[[Titles], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-level, NFC": lambda titles: byte_level(titles, normalizers.NFC()),
    "byte-level, prefix space": lambda titles: byte_level(titles, prefix=True),
    "byte-level, adds bos and eos": _adds_bos_and_eos,
    "byte-level, pad = eos": _named(byte_level, pad_token="</s>"),
    "byte-level, no pad, bos or unk": _named(
        byte_level, pad_token=None, bos_token=None, unk_token=None
    ),
    "byte-level, truncation saved": _truncating,
    "Unigram, marker always": unigram,
    "Unigram, marker first": lambda titles: unigram(titles, "first"),
    "Unigram, marker never": lambda titles: unigram(titles, "never"),
    "legacy Llama": legacy_llama,
    "WordPiece": word_piece,
    "CLIP": clip,
}
"""Each maps titles to a tokenizer that can spell them."""
