"""SASRec: causal self-attention over the last items of a user (Kang & McAuley, ICDM 2018)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.experiment import RecommenderConfig
from recipes.recommenders.dropout import Dropout
from recipes.recommenders.recommender import SequenceRecommender

GROUP, GROUPS = 64, 8
"""Histories are encoded in groups of similar length: minimum size of a group, and maximum number of
groups."""


class SASRec(SequenceRecommender):
    """Self-attention over a user's last items.

    Input and output share one item table (section III-E of the paper). Positions are counted from
    the newest item, so it has the same position whatever the length of the history.
    """

    name = "sasrec"
    version = 2
    summary = "SASRec: causal self-attention over the last items (Kang & McAuley, 2018)"
    about = About(
        title="SASRec",
        meaning="the sequential recommender alone, without a language model",
        order=30,
        ranks_by="SASRec score",
    )

    def __init__(self, config: RecommenderConfig, num_items: int, max_history: int) -> None:
        super().__init__(config, num_items, max_history)
        self.num_items = num_items
        # The additional last row stands for padding and is always zero.
        self.items = nn.Embedding(num_items + 1, config.hidden_size, padding_idx=num_items)
        self.positions = nn.Embedding(max_history, config.hidden_size)
        self.blocks = nn.ModuleList(
            Block(config.hidden_size, config.num_heads, config.dropout, config.inner_size)
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = Dropout(config.dropout)
        self.apply(_initialise)

    @classmethod
    def check(cls, config: RecommenderConfig) -> None:
        """Refuse a number of heads that does not divide the width (ValueError)."""
        if config.hidden_size % config.num_heads:
            raise ValueError(
                f"recommender.num_heads={config.num_heads} does not divide "
                f"recommender.hidden_size={config.hidden_size}"
            )

    @property
    def item_embeddings(self) -> Tensor:
        """The item table, float [num_items, hidden]."""
        return self.items.weight[: self.num_items]

    def forward(self, histories: Tensor) -> Tensor:
        """User representations: float [rows, hidden], the states at the newest items.

        Only what they depend on is computed: the last block computes the newest position alone, and
        histories of like length are taken together, so that short ones carry little padding. The
        representation of an empty history is finite and means nothing.
        """
        width = histories.shape[1]
        lengths = (histories != PADDING).sum(dim=1)
        lengths, order = lengths.sort(stable=True)
        size = max(GROUP, -(-len(histories) // GROUPS))
        parts = []
        for rows, own in zip(order.split(size), lengths.split(size), strict=True):
            longest = max(1, int(own[-1])) if len(own) else width
            parts.append(self._newest(histories[rows, width - longest :]))
        return torch.cat(parts)[order.argsort()]

    def states(self, histories: Tensor) -> Tensor:
        """The state after each item: float [rows, time, hidden].

        As in the paper, an item's position is its place in the whole window.
        """
        hidden, mask = self._embed(histories)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.final_norm(hidden)

    def _newest(self, histories: Tensor) -> Tensor:
        hidden, mask = self._embed(histories)
        *blocks, last = self.blocks
        for block in blocks:
            hidden = block(hidden, mask)
        return self.final_norm(last(hidden, mask, newest=True))[:, -1]

    def _embed(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        real = histories != PADDING
        items = self.items(torch.where(real, histories, self.num_items))
        time, longest = histories.shape[1], self.positions.num_embeddings
        if time > longest:
            raise ValueError(f"histories of width {time}: this model was built for {longest}")
        hidden = self._sum(items, self.positions.weight[longest - time :])
        return self.dropout(hidden), attention_mask(real)

    def _sum(self, items: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads, from embeddings of items and of their positions."""
        return items * math.sqrt(items.shape[-1]) + positions


class Block(nn.Module):
    """x + Dropout(f(LayerNorm(x))), with self-attention as f, then with a feed-forward network.

    Equations 2-6 of the paper. As in the paper, the LayerNorm applies to queries, keys and values;
    in the authors' code it applies to the queries only.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, dropout: float, inner_size: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, inner_size or hidden_size),
            nn.ReLU(),
            nn.Linear(inner_size or hidden_size, hidden_size),
        )
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, newest: bool = False) -> Tensor:
        """States after the block.

        Args:
            hidden: float [rows, time, hidden], states before the block.
            mask: bool [rows, 1, time, time], True where a query may attend.
            newest: Compute only the state at the last position.

        Returns:
            float [rows, time or 1, hidden].
        """
        asked = slice(-1, None) if newest else slice(None)
        attended = self._attend(self.attention_norm(hidden), mask[:, :, asked], asked)
        hidden = hidden[:, asked] + self.dropout(attended)
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))

    def _attend(self, hidden: Tensor, mask: Tensor, asked: slice) -> Tensor:
        rows, _, width = hidden.shape
        # [rows, time, hidden] -> [rows, heads, time, hidden / heads]
        query, key, value = (
            project(states)
            .view(rows, states.shape[1], self.num_heads, width // self.num_heads)
            .transpose(1, 2)
            for project, states in (
                (self.query, hidden[:, asked]),
                (self.key, hidden),
                (self.value, hidden),
            )
        )
        if self.training:  # torch's attention with dropout is slower on a CPU
            scores = query / math.sqrt(query.shape[-1]) @ key.transpose(2, 3)
            weights = (scores + torch.where(mask, 0.0, -torch.inf)).softmax(dim=3)
            mixed = self.dropout(weights) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(rows, query.shape[2], width)


def attention_mask(real: Tensor) -> Tensor:
    """True where a query (third axis) may attend to a key (last axis): bool [rows, 1, time, time].

    A query attends to its own and older positions that are not padding, as `real`, bool
    [rows, time], tells. Padding attends to itself, because a softmax over no position is NaN.
    """
    time = real.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(time, dtype=torch.bool, device=real.device)
    return ((causal & real[:, None, :]) | itself)[:, None]


def _initialise(module: nn.Module) -> None:
    # Item vectors have about unit length. With the normalised state (length sqrt(d)), the initial
    # scores are therefore of order 1, and the softmax over the catalogue starts near uniform.
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
