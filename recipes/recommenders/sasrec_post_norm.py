"""SASRec built from BERT's blocks, as the code of S3-Rec and of RecBole has it."""

from torch import Tensor, nn

from recipes.about import About
from recipes.experiment import RecommenderConfig
from recipes.recommenders.dropout import Dropout
from recipes.recommenders.sasrec import Block, SASRec

WEIGHT_STD, EPSILON = 0.02, 1e-12
"""Standard deviation of the linear layers' weights at the start, and the epsilon of each LayerNorm,
as in BERT (Devlin et al., NAACL 2019)."""


class SASRecPostNorm(SASRec):
    """SASRec whose LayerNorms follow the sums, where those of the paper come before each layer.

    Item and position embeddings are added as they are, so both weigh alike where their standard
    deviations do, and the sum is normalised. There is no norm after the last block. S3-Rec's code
    draws all embeddings with the standard deviation 0.02, which is `recommender.initial_std`.
    """

    name = "sasrec-post-norm"
    version = 1
    summary = "SASRec from BERT's blocks, as in the code of S3-Rec (Zhou et al., 2020) and RecBole"
    about = About(
        title="SASRec, post-norm",
        meaning="SASRec from BERT's blocks alone, without a language model",
        order=33,
        ranks_by="SASRec score",
    )

    def __init__(self, config: RecommenderConfig, num_items: int, max_history: int) -> None:
        super().__init__(config, num_items, max_history)
        self.blocks = nn.ModuleList(
            PostNormBlock(config.hidden_size, config.num_heads, config.dropout, config.inner_size)
            for _ in range(config.num_layers)
        )
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=EPSILON)
        self.final_norm = nn.Identity()

    def _sum(self, items: Tensor, positions: Tensor) -> Tensor:
        return self.embedding_norm(items + positions)


class PostNormBlock(Block):
    """LayerNorm(x + Dropout(f(x))), with self-attention as f, then with a feed-forward network.

    The attention has biases and a linear layer over its heads, the feed-forward network a GELU
    (Vaswani et al., 2017, section 3.1; Devlin et al., 2019).
    """

    def __init__(
        self, hidden_size: int, num_heads: int, dropout: float, inner_size: int | None = None
    ) -> None:
        nn.Module.__init__(self)
        inner_size = inner_size or hidden_size
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=EPSILON)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, inner_size), nn.GELU(), nn.Linear(inner_size, hidden_size)
        )
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=EPSILON)
        self.dropout = Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=WEIGHT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, hidden: Tensor, mask: Tensor, newest: bool = False) -> Tensor:
        """States after the block; arguments and result are those of SASRec's block."""
        asked = slice(-1, None) if newest else slice(None)
        attended = self.output(self._attend(hidden, mask[:, :, asked], asked))
        hidden = self.attention_norm(hidden[:, asked] + self.dropout(attended))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))
