import pytest
import torch

from recipes.recommenders.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_dropped_with_the_probability_and_the_rest_rescaled(p: float) -> None:
    torch.manual_seed(0)
    x = torch.full((300, 301), 2.0, requires_grad=True)
    dropped = Dropout(p)(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.008)  # 5 standard errors
    assert dropped.max().item() == pytest.approx(2 / (1 - p), rel=1e-3)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, dropped.detach() / 2)


def test_every_call_draws_anew_from_the_global_generator_in_training_only() -> None:
    x, dropout = torch.ones(5, 7), Dropout(0.5)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_a_mask_has_no_pattern_along_its_rows() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(4000, 8)) > 0).float()
    correlations = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlations.abs().max() < 0.08  # 5 standard errors
