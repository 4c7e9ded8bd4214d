import json

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_ilora import ILoRAConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 0}, "num_experts=0 must be a positive int"),
        ({"num_experts": 2.5}, "num_experts=2.5 must be a positive int"),
        ({"r": 0}, "r=0 must be a positive int"),
        ({"r": True}, "r=True must be a positive int"),
        ({"routing_dim": -1}, "routing_dim=-1 must be a positive int"),
        ({"gate": "cubic"}, "gate='cubic' must be one of 'linear', 'mlp'"),
        ({"gate_scope": "layer"}, "gate_scope='layer' must be one of 'shared', 'per_module'"),
        ({"scaling_rank": "r"}, "scaling_rank='r' must be one of 'expert', 'total'"),
        ({"missing_routing": "zero"}, "missing_routing='zero' must be one of 'error', 'uniform'"),
        ({"lora_dropout": 1.0}, r"lora_dropout=1.0 must be a number in \[0, 1\)"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0 must be a positive int"),
        ({"use_dora": True}, "use_dora=True cannot be used with iLoRA: DoRA"),
        ({"lora_bias": True}, "lora_bias=True cannot be used with iLoRA: a bias on B"),
        ({"target_parameters": ["w"]}, "target_parameters=.* needs a module"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' cannot be used with iLoRA"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' cannot be used with iLoRA"),
    ],
)
def test_impossible_fields_are_refused_with_name_value_and_reason(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        ILoRAConfig(**fields)


def test_the_defaults_are_four_experts_of_rank_four_with_a_shared_linear_gate() -> None:
    config = ILoRAConfig()
    assert (config.num_experts, config.r, config.routing_dim) == (4, 4, 64)
    assert (config.gate, config.gate_scope, config.missing_routing) == ("linear", "shared", "error")
    assert config.scaling_rank == "expert"


def test_a_saved_config_comes_back_with_every_field(tmp_path) -> None:
    config = ILoRAConfig(num_experts=3, r=2, gate="mlp", gate_scope="per_module", routing_dim=5)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "ILORA"
    loaded = ILoRAConfig.from_pretrained(tmp_path)
    assert loaded == config


def test_the_plain_lora_of_an_instance_has_the_total_rank_and_the_same_scaling() -> None:
    config = ILoRAConfig(
        r=2, num_experts=4, lora_alpha=6, rank_pattern={"q": 3}, alpha_pattern={"v": 5}
    )
    plain = config.to_lora_config()
    assert type(plain) is LoraConfig and plain.peft_type == "LORA"
    assert plain.r == 8 and plain.lora_alpha / plain.r == config.lora_alpha / config.r
    assert plain.rank_pattern == {"q": 12} and plain.alpha_pattern == {"v": 20}
    assert config.peft_type == "ILORA"


def wrapped(**fields) -> None:
    layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(2, 2)})])
    inner = nn.ModuleDict({"layers": layers})
    base = nn.ModuleDict({"model": inner, "head": nn.Linear(2, 2)})
    get_peft_model(base, ILoRAConfig(**{"target_modules": ["q"]} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["q", "qq"]}, r"target_modules: no module .* called \['qq'\]"),
        ({"modules_to_save": ["heat"]}, r"modules_to_save: no module .* called \['heat'\]"),
        ({"layers_to_transform": [0, 7]}, r"layers_to_transform: .* has no layers \[7\]"),
    ],
)
def test_names_that_no_module_has_are_told_beside_others(fields, message) -> None:
    with pytest.warns(UserWarning, match=message):
        wrapped(**fields)
