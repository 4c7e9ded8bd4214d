"""GRU4Rec: a recurrent network over the items of a user (Hidasi et al., ICLR 2016)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.experiment import RecommenderConfig
from recipes.recommenders.items import ItemTable
from recipes.recommenders.recommender import SequenceRecommender


class GRU4Rec(SequenceRecommender):
    """Gated recurrent units over a user's items, and a linear layer back to the items' width.

    The paper reads items one-hot and trains in session-parallel batches. As in later
    implementations, items have embeddings here, which input and output share, and a window is a
    sequence of its own.
    """

    name = "gru4rec"
    summary = "GRU4Rec: a recurrent network over the items (Hidasi et al., 2016)"
    about = About(
        title="GRU4Rec",
        meaning="a recurrent sequential recommender alone, without a language model",
        order=31,
        ranks_by="GRU4Rec score",
    )

    def __init__(self, config: RecommenderConfig, num_items: int, max_history: int) -> None:
        super().__init__(config, num_items, max_history)
        self.items = ItemTable(num_items, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrence = nn.GRU(
            config.hidden_size, config.state_size, config.num_layers, batch_first=True
        )
        self.output = nn.Linear(config.state_size, config.hidden_size)

    @property
    def item_embeddings(self) -> Tensor:
        """The item table, float [num_items, hidden]."""
        return self.items.real

    def forward(self, histories: Tensor) -> Tensor:
        """User representations: float [rows, hidden], of the states after the newest items.

        The representation of an empty history is finite and means nothing.
        """
        time = histories.shape[1]
        lengths = (histories != PADDING).sum(dim=1)
        # Left-padded rows become right-padded ones, which the recurrence can leave off.
        shift = torch.arange(time, device=histories.device) + (time - lengths)[:, None]
        rows = histories.gather(1, shift % time)
        hidden = self.dropout(self.items(rows))
        packed = pack_padded_sequence(
            hidden, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        _, newest = self.recurrence(packed)
        return self.output(newest[-1])
