"""A trunk's rows belong to the same modules for good, also where modules have been renamed."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_ilora import ILoRAConfig
from peft_ilora.gating.trunk import embedding_rows

D = 4


class Chain(nn.Module):
    """Linear layers of these names, one after the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in names:
            self.add_module(name, nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.tanh(layer(x))
        return x


def config(*names: str) -> ILoRAConfig:
    return ILoRAConfig(
        gate="trunk", gate_form="scale", r=2, routing_dim=D, target_modules=list(names)
    )


@pytest.fixture
def saved(tmp_path: Path, randomise) -> tuple[Path, Tensor]:
    """The folder of an adapter of `alpha` and `beta`, and its output."""
    model = randomise(get_peft_model(Chain("alpha", "beta"), config("alpha", "beta"))).eval()
    model.save_pretrained(tmp_path)
    return tmp_path, output(model)


def output(model: PeftModel) -> Tensor:
    with torch.no_grad():
        return model(torch.ones(2, 3), routing_embeds=torch.eye(D)[:2])


def renamed(folder: Path, name: str) -> PeftModel:
    """The adapter on a model whose `alpha` has another name."""
    own = config(name, "beta")
    own.inference_mode = True
    mapping = {"^alpha": name}
    return PeftModel.from_pretrained(Chain(name, "beta"), folder, config=own, key_mapping=mapping)


def test_rows_are_places_among_sorted_names_with_layers_by_number() -> None:
    """Saved adapters have their rows in this order: a change of it needs a new format."""
    names = [
        "lm_head",
        "model.layers.10.self_attn.q_proj",
        "model.layers.9.self_attn.v_proj",
        "model.layers.9.mlp.up_proj",
        "model.vision.layers.9.mlp.up_proj",
    ]
    # Layers: none, 9 and 10 of the model, 9 of its vision. Modules: lm_head, mlp.up_proj,
    # self_attn.q_proj and self_attn.v_proj of model.layers, mlp.up_proj of model.vision.layers.
    assert embedding_rows(names) == [(0, 0), (2, 2), (1, 3), (1, 1), (3, 4)]


def test_a_renaming_that_keeps_the_order_keeps_the_outputs(saved) -> None:
    folder, expected = saved
    torch.testing.assert_close(output(renamed(folder, "aleph")), expected, rtol=0, atol=0)


def test_a_renaming_that_changes_the_order_is_refused(saved) -> None:
    message = "renames alpha to zeta, among others, and sorts the adapted modules otherwise"
    with pytest.raises(ValueError, match=message):
        renamed(saved[0], "zeta")
