"""A random text encoder that tests save in a folder."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

TITLES = ["The Red Fox", "Fox", "A very much longer title of a film, the second", "Fox", "", "Red"]
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
}


def tokenizer_of(titles: list[str]) -> PreTrainedTokenizerFast:
    """BERT's kind, trained on the titles."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(titles, trainers.WordPieceTrainer(special_tokens=special))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def save(folder: Path, kind: type = BertModel, titles: list[str] = TITLES, **settings: Any) -> Path:
    """A random BERT and its tokenizer, in a folder."""
    tokenizer = tokenizer_of(titles)
    torch.manual_seed(0)
    kind(BertConfig(vocab_size=len(tokenizer), **SHAPE, **settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
