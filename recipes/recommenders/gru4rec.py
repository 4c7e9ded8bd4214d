"""GRU4Rec: a recurrent network over the items of a user (Hidasi et al., ICLR 2016)."""

import torch
from torch import Tensor, nn

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
        states, _ = self._recurrent(histories)
        newest = (histories != PADDING).sum(dim=1).clamp(min=1) - 1
        return self.output(states[torch.arange(len(states)), newest])

    def states(self, histories: Tensor) -> Tensor:
        """The representation of the history up to each item: float [rows, time, hidden]."""
        states, place = self._recurrent(histories)
        return self.output(states.gather(1, place[:, :, None].expand(-1, -1, states.shape[2])))

    def _recurrent(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """States of left-aligned rows, [rows, time, state], and where each column's item went.

        Left-padded rows become right-padded ones, since the recurrence begins at the first item.
        """
        time = histories.shape[1]
        shift = (histories == PADDING).sum(dim=1)[:, None]
        columns = torch.arange(time, device=histories.device)
        rows = histories.gather(1, (columns + shift) % time)
        states, _ = self.recurrence(self.dropout(self.items(rows)))
        return states, (columns - shift) % time
