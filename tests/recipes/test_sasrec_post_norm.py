import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.experiment import RecommenderConfig
from recipes.recommenders.sasrec_post_norm import PostNormBlock, SASRecPostNorm
from recipes.recommenders.train import build_model

NUM_ITEMS, WIDTH, HIDDEN = 30, 6, 8
CONFIG = RecommenderConfig(
    hidden_size=HIDDEN, num_layers=2, num_heads=2, dropout=0.0, inner_size=20, initial_std=0.02
)


@pytest.fixture
def model() -> SASRecPostNorm:
    torch.manual_seed(0)
    built = SASRecPostNorm(CONFIG, NUM_ITEMS, WIDTH)
    for parameter in built.parameters():  # biases and norms start at 0 and 1: make them matter
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        built.items.weight[NUM_ITEMS].zero_()
    return built.eval()


def torchs_layer(block: PostNormBlock) -> torch.nn.TransformerEncoderLayer:
    """PyTorch's own layer of post-norm and GELU, with the block's weights."""
    layer = torch.nn.TransformerEncoderLayer(
        HIDDEN, 2, 20, 0.0, F.gelu, layer_norm_eps=1e-12, batch_first=True
    ).eval()
    parts = (block.query, block.key, block.value)
    inner, outer = block.feed_forward[0], block.feed_forward[2]
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    for theirs, own in [
        (layer.self_attn.out_proj, block.output),
        (layer.linear1, inner),
        (layer.linear2, outer),
        (layer.norm1, block.attention_norm),
        (layer.norm2, block.feed_forward_norm),
    ]:
        theirs.load_state_dict(own.state_dict())
    return layer


def reference(model: SASRecPostNorm, history: list[int]) -> Tensor:
    """The state at the newest item, by PyTorch's layers over a history without padding."""
    items = model.items.weight[torch.tensor(history)]
    hidden = model.embedding_norm(items + model.positions.weight[-len(history) :])[None]
    causal = torch.nn.Transformer.generate_square_subsequent_mask(len(history))
    for block in model.blocks:
        assert isinstance(block, PostNormBlock)
        hidden = torchs_layer(block)(hidden, src_mask=causal)
    return hidden[0, -1]


@pytest.mark.parametrize("history", [[3], [5, 2, 9], [3, 1, 4, 1, 5, 9]])
def test_the_representation_is_that_of_pytorchs_post_norm_layers(
    model: SASRecPostNorm, history: list[int]
):
    padded = torch.tensor([[-1] * (WIDTH - len(history)) + history])
    expected = reference(model, history)
    torch.testing.assert_close(model(padded)[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.states(padded)[0, -1], expected, atol=1e-5, rtol=1e-5)


def test_weights_start_as_in_bert():
    model = build_model(
        SASRecPostNorm, RecommenderConfig(inner_size=256, initial_std=0.02), 3000, 50
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not module.bias.any()
    assert model.item_embeddings.std().item() == pytest.approx(0.02, rel=0.05)
    states = model.eval()(torch.arange(50)[None])
    assert np.isclose(states.norm().item(), 8, rtol=1e-3)  # normalised, of length sqrt(64)
