import pytest
import torch

from recipes.artifacts import read_tensors
from recipes.prompting.projector import Projector, fill_slots, new_projector
from recipes.recommenders.normaliser import Normaliser


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "inputs_embeds": torch.randn(3, 6, 8),
        "slot_items": torch.tensor(
            [[-1, 0, -1, 4, -2, -1], [-1, -1, -1, -1, -1, -1], [2, 2, -2, -1, -1, 1]]
        ),
        "item_embeddings": torch.randn(5, 4),
        "user_representations": torch.randn(3, 4),
    }


def test_slots_are_filled_as_a_loop_over_positions_would(batch):
    projector = Projector(4, 8)
    wanted = batch["inputs_embeds"].clone()
    for row in range(3):
        for column in range(6):
            slot = int(batch["slot_items"][row, column])
            if slot >= 0:
                wanted[row, column] = projector(batch["item_embeddings"][slot])
            elif slot == -2:
                wanted[row, column] = projector(batch["user_representations"][row])
    torch.testing.assert_close(fill_slots(**batch, projector=projector), wanted)


def test_the_inputs_are_not_changed_and_slots_train_the_projector(batch):
    before = batch["inputs_embeds"].clone()
    projector = Projector(4, 8)
    fill_slots(**batch, projector=projector).sum().backward()
    assert torch.equal(batch["inputs_embeds"], before)
    assert all(parameter.grad.abs().sum() > 0 for parameter in projector.parameters())


def test_filled_slots_take_the_dtype_of_the_token_embeddings(batch):
    batch["inputs_embeds"] = batch["inputs_embeds"].bfloat16()
    assert fill_slots(**batch, projector=Projector(4, 8)).dtype == torch.bfloat16


def test_projected_items_begin_with_the_norm_of_token_embeddings():
    torch.manual_seed(0)
    items, tokens = torch.randn(200, 64), 0.05 * torch.randn(1000, 96)
    norms = new_projector(items, tokens, seed=0)(items).norm(dim=1)
    assert norms.mean().item() == pytest.approx(tokens.norm(dim=1).mean().item(), rel=1e-4)
    assert norms.std() < 0.3 * norms.mean()


def test_a_projector_depends_on_its_seed_only():
    items, tokens = torch.randn(20, 4), torch.randn(30, 8)
    one, two, other = (new_projector(items, tokens, seed) for seed in (3, 3, 4))
    assert torch.equal(one.first.weight, two.first.weight)
    assert not torch.equal(one.first.weight, other.first.weight)


def test_standardised_vectors_have_mean_0_and_deviation_1_and_constants_become_0(tmp_path):
    torch.manual_seed(0)
    items, users = 3 + 2 * torch.randn(50, 4), torch.randn(40, 4) - 1
    items[:, 1] = 7
    normaliser = Normaliser.fit(items, users)
    normaliser.save(tmp_path / "normaliser.safetensors")
    loaded = Normaliser(**read_tensors(tmp_path / "normaliser.safetensors"))
    std, mean = torch.std_mean(loaded.items(items), dim=0, correction=0)
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.tensor([1.0, 0, 1, 1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(loaded.users(users).mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_diverged_vectors_are_refused():
    with pytest.raises(ValueError, match="train_users holds NaN"):
        Normaliser.fit(torch.zeros(3, 2), torch.full((3, 2), torch.nan))


def test_where_every_history_is_empty_users_stay_as_they_are() -> None:
    normaliser = Normaliser.fit(torch.randn(3, 2), torch.empty(0, 2))
    assert torch.equal(normaliser.users(torch.tensor([[3.0, -1.0]])), torch.tensor([[3.0, -1.0]]))
