"""GRU4Rec: a recurrent network over the items of a user (Hidasi et al., ICLR 2016)."""

from torch import Tensor, nn

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.experiment import RecommenderConfig
from recipes.recommenders.dropout import Dropout
from recipes.recommenders.items import ItemTable
from recipes.recommenders.recommender import SequenceRecommender
from recipes.recommenders.recurrence import gru


class GRU4Rec(SequenceRecommender):
    """Gated recurrent units over a user's items, and a linear layer back to the items' width.

    The paper reads items one-hot and trains in session-parallel batches. As in later
    implementations, items have embeddings here, which input and output share, and a window is a
    sequence of its own.
    """

    name = "gru4rec"
    version = 2
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
        self.dropout = Dropout(config.dropout)
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
        states, _, order = self._recurrent(histories, newest=True)
        return self.output(states[order.argsort()])

    def states(self, histories: Tensor) -> Tensor:
        """The representation of the history up to each item: float [rows, time, hidden]."""
        states, real, order = self._recurrent(histories, newest=False)
        found = states.new_zeros(*real.shape, states.shape[1])
        found[real] = states  # [time, rows, state]
        return self.output(found.transpose(0, 1)[order.argsort()])

    def _recurrent(self, histories: Tensor, newest: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The states of all items, step by step, or of the newest; the longest history first.

        Returns:
            States, float [items or rows, state]; where those of all items belong, bool
            [time, rows], with the rows in order; and that order, int64 [rows].
        """
        real = histories != PADDING
        real[:, -1] = True  # an empty history has one item, which is padding
        order = real.sum(dim=1).argsort(descending=True, stable=True)
        rows, real = histories[order].T, real[order].T
        inputs = self.dropout(self.items(rows[real]))
        active = [count for count in real.sum(dim=1).tolist() if count]
        return gru(self.recurrence, inputs, active, newest), real, order
