"""A text encoder as a recommender: items are what their titles say."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer

from recipes.about import About
from recipes.checksums import Checksums
from recipes.data.padding import PADDING
from recipes.data.splits import SPLITS, SplitName
from recipes.data.tables import PreparedData
from recipes.pretrained import content_of, explained
from recipes.recommenders.recommender import VectorSource
from recipes.recommenders.representations import ENCODED_AT_ONCE

FIELD = "recommender.encoder"
REMEDY = "give a Hugging Face encoder with its tokenizer by name or path, in safetensors"
TITLES_AT_ONCE = 64
"""Titles encoded at once."""


class TextEncoder(VectorSource):
    """Item: mean over the tokens of its title; user: mean over the items of the visible history.

    So a candidate's score is its mean similarity, as dot product, to what the user has met. This is
    the item encoder of MoRec (Yuan et al., SIGIR 2023) without its training; pooling is that of
    Sentence-BERT (Reimers and Gurevych, EMNLP 2019, Section 3), special tokens included. An empty
    history gives zeros.
    """

    name = "text"
    summary = "a text encoder reads the titles; users are the mean of their history"
    about = About(
        title="Text encoder",
        meaning="candidates ranked by how much their titles are like the history's, to an encoder",
        order=20,
        ranks_by="similarity of titles",
    )
    settings = ("encoder",)
    is_common = True

    def check(self) -> None:
        """Refuse a missing name."""
        check_encoder(self.name, self.config.encoder)

    @property
    def encoder(self) -> str:
        """Name or path of the encoder."""
        assert self.config.encoder is not None  # see `check`
        return self.config.encoder

    def inputs(self, checksums: Checksums) -> dict[str, str]:
        """The content of the encoder's folder, or its commit on the hub."""
        return encoder_content(self.encoder, checksums)

    @property
    def width(self) -> int:
        """Width of the encoder's hidden states."""
        return encoder_width(self.encoder)

    def vectors(self, data: PreparedData, prepared: Path) -> tuple[dict[SplitName, Tensor], Tensor]:
        """Encode the titles, and take means over histories."""
        items = encode_titles(self.encoder, data.titles)
        users: dict[SplitName, Tensor] = {
            name: history_means(items, data.split(name).histories) for name in SPLITS
        }
        return users, items


def check_encoder(recommender: str, name_or_path: str | None) -> None:
    """Refuse a missing encoder (ValueError).

    Args:
        recommender: Name of the recommender that needs it.
        name_or_path: `recommender.encoder`.
    """
    if name_or_path is None:
        raise ValueError(
            f"{FIELD} names no model, which the recommender `{recommender}` needs: {REMEDY}"
        )


def encoder_content(name_or_path: str, checksums: Checksums) -> dict[str, str]:
    """The content of the encoder's folder, or its commit on the hub, by the field's name.

    Raises:
        FileNotFoundError: There is no such model.
    """
    with explained(FIELD, name_or_path, REMEDY):
        return {FIELD: content_of(name_or_path, checksums)}


def encoder_width(name_or_path: str) -> int:
    """Width of the encoder's hidden states.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is damaged, or no encoder.
    """
    with explained(FIELD, name_or_path, REMEDY):
        return _config(name_or_path).hidden_size


@torch.inference_mode()
def encode_titles(name_or_path: str, titles: list[str]) -> Tensor:
    """Mean of each title's last hidden states over its tokens.

    Equal titles have equal vectors, bit for bit. A title that is longer than the encoder reads is
    cut at its end.

    Args:
        name_or_path: Repository on the Hugging Face hub, or a folder. Code from it is never run,
            and pickles are not read.
        titles: The n titles.

    Returns:
        float32 [n, d]; zeros for a title without tokens.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is damaged, lacks weights, is no encoder, or gives NaN.
    """
    with explained(FIELD, name_or_path, REMEDY):
        model, tokenizer = _loaded(name_or_path)
        limit = min(tokenizer.model_max_length, _positions(model))
        cut = (
            {"truncation": True, "max_length": limit} if limit < torch.iinfo(torch.int).max else {}
        )
        distinct = list(dict.fromkeys(titles))
        ids: list[list[int]] = tokenizer(distinct, verbose=False, **cut)["input_ids"]
        rows = model.get_input_embeddings().weight.shape[0]
        if (highest := max((max(one, default=0) for one in ids), default=0)) >= rows:
            raise ValueError(
                f"its tokenizer gives the id {highest}, but the model has {rows} embeddings"
            )
    vectors = torch.empty(len(distinct), model.config.hidden_size)
    order = sorted(range(len(ids)), key=lambda one: len(ids[one]))  # so that little is padded
    with tqdm(total=len(distinct), desc="Titles") as bar:
        for start in range(0, len(order), TITLES_AT_ONCE):
            chosen = order[start : start + TITLES_AT_ONCE]
            vectors[chosen] = _pooled(model, [ids[one] for one in chosen])
            bar.update(len(chosen))
    if not torch.isfinite(vectors).all():
        raise ValueError(f"{FIELD}={name_or_path!r} gives NaN or infinity for a title: {REMEDY}")
    place = {title: row for row, title in enumerate(distinct)}
    return vectors[[place[title] for title in titles]]


def history_means(items: Tensor, histories: np.ndarray) -> Tensor:
    """Mean of the history's item vectors; zeros for an empty history.

    Args:
        items: float32 [num_items, d].
        histories: int64 [rows, width], item ids, padded with -1.

    Returns:
        float32 [rows, d].
    """
    table, padding = F.pad(items, (0, 0, 0, 1)), len(items)
    chunks = torch.tensor(np.where(histories == PADDING, padding, histories)).split(ENCODED_AT_ONCE)
    means = [F.embedding_bag(one, table, mode="mean", padding_idx=padding) for one in chunks]
    return torch.cat(means)


def _pooled(model: Any, ids: list[list[int]]) -> Tensor:
    """Mean hidden state of each sequence of token ids: float32 [n, d]."""
    longest = max(1, *map(len, ids))
    # Any id may serve as padding, on the right, as the mask hides it.
    tokens = torch.tensor([one + [0] * (longest - len(one)) for one in ids])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids])
    hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
    # A title without tokens has NaN or zeros, as the model likes; both become zeros.
    summed = hidden.masked_fill(mask[..., None] == 0, 0).sum(dim=1)
    return summed / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _config(name_or_path: str) -> Any:
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder-decoder: take an encoder alone")
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise ValueError(f"{config.model_type} does not say how wide its hidden states are")
    return config


def _loaded(name_or_path: str) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer."""
    _config(name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    loaded: Any = AutoModel.from_pretrained(
        name_or_path,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, report = loaded
    # BERT's pooler reads the first token alone, and is not used here.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as "
            f"{missing[0]}, which would start at random"
        )
    return model.eval(), tokenizer


def _positions(model: Any) -> int:
    """The most tokens that the model's positions allow.

    Models like RoBERTa number positions from the one after padding's.
    """
    most = getattr(model.config, "max_position_embeddings", None) or torch.iinfo(torch.int).max
    tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
    paddings = [getattr(table, "padding_idx", None) for table in tables]
    return most - max((one + 1 for one in paddings if one is not None), default=0)
