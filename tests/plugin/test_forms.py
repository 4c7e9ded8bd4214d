"""A gate form of one class is trained, saved, exported and merged by what it declares."""

import copy
from typing import Literal

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_ilora import ILoRAConfig, config, export_lora, fast, gating
from peft_ilora.gating.factors import Factors


class Doubling(Factors):
    """`B diag(2^s) A`, as docs/architecture.md shows it."""

    def count(self, coordinates) -> int:
        return coordinates.rank

    def factors(self, coefficients: Tensor, coordinates) -> Tensor:
        return coefficients.exp2()

    def statistics(self, coefficients: Tensor) -> dict:
        return {"rows": coefficients.shape[0], "mean": coefficients.mean().item()}

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        return {"deviation": coefficients.square().mean()}


@pytest.mark.parametrize("layers", ["plain", "fused"])
def test_a_form_of_ones_own_works_everywhere(layers, monkeypatch, randomise, tmp_path) -> None:
    monkeypatch.setitem(gating.FORMS, "doubling", Doubling)
    monkeypatch.setattr(config, "GateFormName", Literal["softmax", "doubling"])
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    x, z = torch.randn(2, 7, 5), torch.randn(2, 3)
    fields = ILoRAConfig(gate_form="doubling", routing_dim=3, target_modules=["0", "2"])
    try:
        if layers == "plain":
            fast.uninstall()
        model = randomise(get_peft_model(copy.deepcopy(base), fields))
    finally:
        fast.install()

    expected = model(x, routing_embeds=z)
    (expected.sum() + model.base_model.routing_losses()["deviation"]).backward()
    assert model.base_model.ilora_gate["default"].project.weight.grad.any()
    assert model.base_model.routing_statistics()["rows"] == 2

    model.save_pretrained(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "saved"))
    assert torch.allclose(loaded(x, routing_embeds=z), expected, atol=1e-6)
    export_lora(model, z[:1], tmp_path / "lora")
    plain = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "lora"))
    assert torch.allclose(plain(x)[0], expected[0], atol=1e-5)
    merged = model.merge_and_unload(routing_embeds=z[:1])
    assert torch.allclose(merged(x)[0], expected[0], atol=1e-5)
