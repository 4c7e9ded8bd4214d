"""MoRec: a recommender whose items are texts (Yuan et al., SIGIR 2023, arXiv 2303.13835).

In place of an embedding for each item's id, a text encoder reads the item's title, and a dense
layer brings the encoder's vector to the recommender's width. The sequence encoder reads these
vectors, and scores items by them.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.about import About
from recipes.checksums import Checksums
from recipes.data.tables import PreparedData
from recipes.experiment import RecommenderConfig
from recipes.recommenders.sasrec import SASRec
from recipes.recommenders.text_encoder import (
    check_encoder,
    encode_titles,
    encoder_content,
    encoder_width,
)


class MoRec(SASRec):
    """SASRec whose item vectors are a learned projection of frozen embeddings of the titles.

    An item's vector is `W x + b`, where x is the encoder's mean over the title's tokens. W and b
    are trained with the sequence encoder, by the losses of the other networks; the encoder is not
    (the paper's two-stage training, which it compares with training end to end, where the encoder
    learns too). Two items of the same title have the same vector and score.
    """

    name = "morec"
    version = 1
    located = ("encoder",)
    summary = "MoRec: SASRec with a text encoder in place of item ids (Yuan et al., 2023)"
    about = About(
        title="MoRec",
        meaning="SASRec whose items are what a text encoder makes of their titles, without a "
        "language model",
        order=34,
        ranks_by="MoRec score",
    )

    def __init__(self, config: RecommenderConfig, num_items: int, max_history: int) -> None:
        super().__init__(config, num_items, max_history)
        assert config.encoder is not None  # see `check`
        self.encoder = config.encoder
        width = encoder_width(self.encoder)
        self.items = ProjectedTexts(num_items, width, config.hidden_size)  # type: ignore[assignment]

    @classmethod
    def check(cls, config: RecommenderConfig) -> None:
        """Refuse also a missing encoder, and a start of item embeddings (ValueError)."""
        super().check(config)
        check_encoder(cls.name, config.encoder)
        if config.initial_std is not None:
            raise ValueError(
                f"recommender.initial_std={config.initial_std}: {cls.name} has no embeddings of "
                "items: leave it out"
            )

    @classmethod
    def open(cls, config: RecommenderConfig) -> None:
        """Read how wide the encoder is."""
        assert config.encoder is not None
        encoder_width(config.encoder)

    @classmethod
    def inputs(cls, config: RecommenderConfig, checksums: Checksums) -> dict[str, str]:
        """The content of the encoder."""
        assert config.encoder is not None
        return encoder_content(config.encoder, checksums)

    def prepare(self, data: PreparedData) -> None:
        """Encode the titles."""
        assert isinstance(self.items, ProjectedTexts)
        self.items.set_texts(encode_titles(self.encoder, data.titles))

    @property
    def item_embeddings(self) -> Tensor:
        """The projected texts, float [num_items, hidden]."""
        return self.items.real


class ProjectedTexts(nn.Module):
    """Vectors of items, projected from those of their texts.

    Args:
        num_items: Number of items.
        text_width: Width of a text's vector.
        hidden_size: Width of an item's vector, which is of about unit length at the start.
    """

    texts: Tensor
    """float [num_items + 1, text_width], not trained; the last row stands for padding."""
    first: Tensor
    """int64 [num_items], the first item with the same text. A matrix product may round equal rows
    differently, and would so break the tie of items that are the same."""

    def __init__(self, num_items: int, text_width: int, hidden_size: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.register_buffer("texts", torch.zeros(num_items + 1, text_width))
        self.register_buffer("first", torch.arange(num_items))
        self.projection = nn.Linear(text_width, hidden_size)
        nn.init.normal_(self.projection.weight, std=(text_width * hidden_size) ** -0.5)
        nn.init.zeros_(self.projection.bias)

    def set_texts(self, vectors: Tensor) -> None:
        """Take over the texts' vectors, centred, and scaled by one number to a variance of 1.

        Any encoder thus starts alike; the projection can undo both. Encoders' vectors share a
        large mean (Ethayarajh, EMNLP 2019), which would make all items alike at the start.

        Args:
            vectors: float [num_items, text_width].
        """
        centred = vectors - vectors.mean(dim=0)
        self.texts[: self.num_items] = centred / centred.std(correction=0).clamp(min=1e-6)
        _, first, kinds = np.unique(vectors.numpy(), axis=0, return_index=True, return_inverse=True)
        self.first.copy_(torch.from_numpy(first[kinds]))

    @property
    def real(self) -> Tensor:
        """All items' vectors, float [num_items, hidden]."""
        return self.projection(self.texts[: self.num_items])[self.first]

    def forward(self, items: Tensor) -> Tensor:
        """Vectors of items, int64 [..], of which `num_items` is padding: float [.., hidden]."""
        vectors = self.projection(F.embedding(items, self.texts))
        return vectors.masked_fill((items == self.num_items)[..., None], 0)
