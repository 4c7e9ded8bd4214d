"""Caser: convolutions over the last items of a user (Tang and Wang, WSDM 2018)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.experiment import RecommenderConfig
from recipes.recommenders.dropout import Dropout
from recipes.recommenders.items import ItemTable
from recipes.recommenders.recommender import SequenceRecommender


class Caser(SequenceRecommender):
    """Horizontal and vertical convolutions over the matrix of a user's last items.

    Equations 3-9 of the paper. Its vector of the user (equation 10) is left out, because evaluated
    users are not among the train users; and input and output share one item table.
    """

    name = "caser"
    version = 2
    summary = "Caser: convolutions over the last items (Tang & Wang, 2018)"
    about = About(
        title="Caser",
        meaning="a convolutional sequential recommender alone, without a language model",
        order=32,
        ranks_by="Caser score",
    )

    def __init__(self, config: RecommenderConfig, num_items: int, max_history: int) -> None:
        super().__init__(config, num_items, max_history)
        self.longest, self.order = max_history, min(config.markov_order or max_history, max_history)
        hidden, across, down = (
            config.hidden_size,
            config.horizontal_filters,
            config.vertical_filters,
        )
        self.items = ItemTable(num_items, hidden)
        self.horizontal = nn.ModuleList(
            nn.Conv1d(hidden, across, height) for height in range(1, self.order + 1)
        )
        self.vertical = nn.Linear(self.order, down, bias=False)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(across * self.order + down * hidden, hidden)

    @property
    def item_embeddings(self) -> Tensor:
        """The item table, float [num_items, hidden]."""
        return self.items.real

    def forward(self, histories: Tensor) -> Tensor:
        """User representations: float [rows, hidden].

        Padding is a zero vector, as in the paper. The representation of an empty history is finite
        and means nothing.
        """
        time = histories.shape[1]
        if time > self.longest:
            raise ValueError(f"histories of width {time}: this model was built for {self.longest}")
        # A negative padding leaves off the oldest items.
        real = F.pad(histories, (self.order - time, 0), value=PADDING)
        # [rows, hidden, order]
        image = self.items(real).transpose(1, 2)
        across = [F.relu(convolve(image)).amax(dim=2) for convolve in self.horizontal]
        down = self.vertical(image).flatten(1)
        return F.relu(self.output(self.dropout(torch.cat([*across, down], dim=1))))
