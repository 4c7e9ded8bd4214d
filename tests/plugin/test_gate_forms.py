"""The forms that start as plain LoRA, and the trunk: equations, starts, what they do to a model.

What holds for every gate is tested where it is tested for the paper's; here is what differs.
"""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from peft_ilora import ILoRAConfig, fast
from peft_ilora.gating import FORMS, make_gate
from peft_ilora.gating.coordinates import coordinates
from peft_ilora.gating.modulation import Affine, Scale, Square
from peft_ilora.gating.trunk import EMBEDDED, HIDDEN, Trunk, parted
from peft_ilora.routing.binding import Routing
from peft_ilora.routing.images import ImageRows, Images

RANK, D, N_IN, N_OUT = 6, 5, 7, 4
FREE = [form for form in FORMS if form != "softmax"]
"""The forms without experts."""
GATES = {
    "linear": {"gate": "linear"},
    "linear, per module": {"gate": "linear", "gate_scope": "per_module"},
    "mlp": {"gate": "mlp"},
    "trunk": {"gate": "trunk"},
}
MODELS = {
    f"{form}, {gate}": {"gate_form": form, "r": 2, **GATES[gate]}
    for form, gate in [
        ("softmax", "trunk"),
        ("sigmoid", "linear"),
        ("scale", "trunk"),
        ("shift", "linear, per module"),
        ("scale_shift", "trunk"),
        ("square", "trunk"),
    ]
}
"""A generator for each form, for tests that cost more than a layer."""


def supported(names) -> list:
    return [
        pytest.param(n, marks=pytest.mark.support("Gates", f"form: {n}", "works")) for n in names
    ]


trunk_works = pytest.mark.support("Gates", "trunk", "works")
every_form = pytest.mark.parametrize("form", supported(FREE))
every_model = pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(N_IN, N_OUT), nn.Linear(N_OUT, N_OUT)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](torch.tanh(self.layers[0](x)))


def two(randomise=None, **fields) -> PeftModel:
    torch.manual_seed(0)
    settings = {"num_experts": 3, "r": 2, "lora_alpha": 4, "routing_dim": D}
    config = ILoRAConfig(**settings | {"target_modules": ["0", "1"]} | fields)
    model = get_peft_model(Two(), config)
    return model if randomise is None else randomise(model)


def logits_of(gate, place: int, z: Tensor) -> Tensor:
    """What a generator makes for one layer, written out for one instance."""
    made = gate.project
    if isinstance(made, Trunk):
        where = made.layer_embedding.weight[place], made.module_embedding.weight[0]
        weight = torch.cat([made.read.weight, made.locate.weight], dim=1)
        hidden = weight @ torch.cat([z, *where]) + made.read.bias
        return made.head.weight @ nn.functional.gelu(hidden) + made.head.bias
    if isinstance(made, nn.Linear):
        return made.weight @ z
    return made[2].weight @ nn.functional.gelu(made[0].weight @ z + made[0].bias)


def naive_update(form: str, a: Tensor, b: Tensor, logits: Tensor, x: Tensor) -> Tensor:
    """The issue's table, for one instance: x is [..., in], the result [..., out]."""
    if form == "softmax":
        return x @ (b @ torch.diag(torch.softmax(logits, 0).repeat_interleave(2)) @ a).T
    if form == "sigmoid":
        return x @ (b @ torch.diag(2 / (1 + torch.exp(-logits))) @ a).T
    if form == "scale":
        return x @ (b @ torch.diag(1 + logits) @ a).T
    if form == "shift":
        return (x @ a.T + logits) @ b.T
    if form == "scale_shift":
        return ((1 + logits[:RANK]) * (x @ a.T) + logits[RANK:]) @ b.T
    return x @ (b @ (torch.eye(RANK, dtype=a.dtype) + logits.view(RANK, RANK)) @ a).T


def naive(model: PeftModel, form: str, x: Tensor, z: Tensor) -> Tensor:
    scaling = 4 / 2 if form == "softmax" else 4 / 6
    base, rows = model.base_model.model, []
    for x_i, z_i in zip(x, z, strict=True):
        for place, layer in enumerate(base.layers):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            logits = logits_of(layer.lora_variant["default"].gate, place, z_i)
            x_i = layer.base_layer(x_i) + scaling * naive_update(form, a, b, logits, x_i)
            x_i = torch.tanh(x_i) if place == 0 else x_i
        rows.append(x_i)
    return torch.stack(rows)


def gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture(params=["plain layers", "fused layers"])
def layers(request):
    if request.param == "plain layers":
        fast.uninstall()
    yield request.param
    fast.install()


PAIRS = [(form, gate) for form in FORMS for gate in GATES if gate != "mlp" or form == "scale"]


@pytest.mark.parametrize(("form", "gate"), PAIRS)
def test_a_layer_equals_the_forms_equation_in_forward_and_gradients(
    layers, form, gate, randomise
) -> None:
    model = two(randomise, gate_form=form, **GATES[gate]).double()
    for shape in ((3, N_IN), (3, 2, N_IN), (3, 2, 2, N_IN)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        z = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
        expected = naive(model, form, x, z)
        probe = torch.randn_like(expected)
        (expected * probe).sum().backward()
        wanted = gradients(model) | {"x": x.grad, "z": z.grad}
        x.grad = z.grad = None
        actual = model(x, routing_embeds=z)
        (actual * probe).sum().backward()
        found = gradients(model) | {"x": x.grad, "z": z.grad}
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert len(found) > 5 and all(value.any() for value in found.values())


@every_form
@pytest.mark.parametrize(("gate", "rslora"), [("linear", True), ("mlp", False), ("trunk", False)])
def test_training_starts_as_plain_lora_of_the_total_rank_and_leaves_it(form, gate, rslora) -> None:
    model = two(gate_form=form, use_rslora=rslora, **GATES[gate])
    config = LoraConfig(r=6, lora_alpha=4, use_rslora=rslora, target_modules=["0", "1"])
    torch.manual_seed(0)
    plain = get_peft_model(Two(), config)
    state = plain.state_dict()
    for key, value in state.items():
        if "lora_" in key:
            value.normal_()
    model.load_state_dict(state, strict=False)
    x, z = torch.randn(3, 5, N_IN), torch.randn(3, D)
    torch.testing.assert_close(model(x, routing_embeds=z), plain(x))
    model(x, routing_embeds=z).square().sum().backward()
    heads = [p for n, p in model.named_parameters() if "ilora_gate" in n and not p.any()]
    assert heads and all(head.grad.abs().sum() > 0 for head in heads)


@every_form
def test_without_routing_uniform_is_plain_lora(form, layers, randomise) -> None:
    model = two(randomise, gate_form=form, gate="trunk", missing_routing="uniform")
    plain = get_peft_model(Two(), LoraConfig(r=6, lora_alpha=4, target_modules=["0", "1"]))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "gate" not in k})
    x = torch.randn(3, 5, N_IN)
    torch.testing.assert_close(model(x), plain(x))


@trunk_works
def test_a_trunk_starts_a_softmax_evenly() -> None:
    model = two(gate="trunk")
    for weights in model.gate_weights(torch.randn(4, D)).values():
        assert torch.equal(weights, torch.full((4, 3), 1 / 3))


@every_form
def test_dropout_neither_drops_nor_rescales_a_shift(form, layers, randomise) -> None:
    model = two(randomise, gate_form=form, lora_dropout=0.5)
    for layer in model.base_model.model.layers:
        layer.lora_A["default"].weight.data.zero_()
    x, z = torch.randn(3, 5, N_IN), torch.randn(3, D)
    torch.testing.assert_close(
        model.train()(x, routing_embeds=z), model.eval()(x, routing_embeds=z)
    )


# -------------------------------------------------------------------- coefficients


def coefficients(form: str, logits: list[float], rank: int = 2) -> tuple:
    """A form, a layer's coordinates, and coefficients of one row."""
    made = FORMS[form](ILoRAConfig(gate_form=form, num_experts=1, r=rank))
    own = coordinates((rank,))
    assert made.count(own) == len(logits)
    return made, own, made.coefficients(torch.tensor(logits))


def test_modulations_of_given_logits() -> None:
    like = torch.ones(1)

    def modulation(form: str, logits: list[float]):
        made, own, given = coefficients(form, logits)
        return made.modulation(given, own, 10.0, like, 3.0)

    def same(found: Tensor, values: list) -> bool:
        return torch.allclose(found, torch.tensor(values))

    found = modulation("sigmoid", [0.0, math.log(3)])
    assert isinstance(found, Scale) and same(found.factors, [30.0, 45.0])
    found = modulation("scale", [-1.0, 0.5])
    assert isinstance(found, Scale) and same(found.factors, [0.0, 45.0])
    found = modulation("shift", [-1.0, 0.5])
    assert isinstance(found, Affine) and same(found.offsets, [-10.0, 5.0])
    assert same(found.factors, [30.0])
    found = modulation("scale_shift", [-1.0, 0.5, 2.0, 3.0])
    assert isinstance(found, Affine) and same(found.offsets, [20.0, 30.0])
    assert same(found.factors, [0.0, 45.0])
    found = modulation("square", [1.0, 2.0, 3.0, 4.0])
    assert isinstance(found, Square) and same(found.matrix, [[60.0, 60.0], [90.0, 150.0]])
    assert same(found(torch.tensor([[1.0, 10.0]])), [[660.0, 1590.0]])


def test_statistics_and_losses_of_given_logits() -> None:
    z, half = torch.tensor([[1.0], [-1.0]]), math.log(3)  # 2 sigmoid(+-log 3) = 1.5 and 0.5
    expected = {
        "sigmoid": ("factor", [half, 0.0], [1.0, 0.125**0.5, 1.5], 0.125),
        "scale": ("scale", [1.0, 3.0], [0.0, 5**0.5, 3.0], 5.0),
        "shift": ("shift", [1.0, 3.0], [0.0, 5**0.5, 3.0], 5.0),
        "square": ("matrix", [1.0, 3.0, 1.0, 3.0], [0.0, 5**0.5, 3.0], 5.0),
    }
    for form, (name, weights, figures, loss) in expected.items():
        config = ILoRAConfig(gate_form=form, num_experts=1, r=2, routing_dim=1)
        gate = make_gate(config, 1)
        gate.project.weight.data = torch.tensor(weights).unsqueeze(1)
        given = gate(z)
        keys = [f"{name}_mean", f"{name}_std", f"{name}_largest"]
        found = gate.form.statistics(given)
        assert list(found) == ["rows", *keys] and found["rows"] == 2
        assert [found[key] for key in keys] == pytest.approx(figures)
        assert gate.form.losses(given)["deviation"].item() == pytest.approx(loss)
    made, _, given = coefficients("scale_shift", [1.0, 3.0, -5.0, -5.0])
    found = made.statistics(given.unsqueeze(0))
    assert [found["scale_mean"], found["scale_std"], found["shift_mean"]] == [2.0, 1.0, -5.0]
    assert found["shift_largest"] == 5.0 and len(found) == 7
    assert made.losses(given)["deviation"].item() == pytest.approx(60 / 4)


@every_model
def test_statistics_losses_and_coefficients_are_told_by_layer_where_layers_differ(
    fields, make_adapted, ids, z
) -> None:
    model = make_adapted(**fields)
    model(input_ids=ids, routing_embeds=z)
    given, found = model.gate_weights(z), model.routing_statistics()
    of_layers = fields["gate"] == "trunk" or "gate_scope" in fields
    assert isinstance(given, dict) == of_layers
    if of_layers:
        assert found.keys() == given.keys() and len(given) == 8
        one = model.base_model.model.model.layers[1].self_attn.v_proj
        update, name = one.lora_variant["default"], "model.layers.1.self_attn.v_proj"
        torch.testing.assert_close(given[name], update.coefficients_of(z))
        assert found[name] == update.gate.form.statistics(given[name])
    losses = model.routing_losses()
    sum(losses.values()).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "ilora_gate" in n)
    if fields["gate_form"] != "softmax":
        assert list(losses) == ["deviation"] and losses["deviation"] > 0


# -------------------------------------------------------------------- the trunk


@trunk_works
def test_a_modules_place_is_its_layers_number_and_the_rest_of_its_name() -> None:
    assert parted("model.layers.3.mlp.up_proj") == ("model.layers.3", "model.layers.mlp.up_proj")
    assert parted("encoder.block.0.layer.1.q") == ("encoder.block.0", "encoder.block.layer.1.q")
    assert parted("lm_head") == ("", "lm_head")
    trunk = Trunk(4)
    names = ["h.10.a", "h.10.b", "h.9.b", "lm_head"]
    trunk.settle(names, 2)
    assert trunk.indices == [(2, 0), (2, 1), (1, 1), (0, 2)]
    assert trunk.layer_embedding.weight.shape == (3, EMBEDDED)
    with torch.no_grad():
        trunk.head.weight.normal_()
    z = torch.randn(5, 4)
    every = trunk(z)
    assert every.shape == (4, 5, 2)
    for place in range(4):
        torch.testing.assert_close(trunk(z, place), every[place])


@trunk_works
def test_a_trunk_has_a_few_thousand_parameters(make_llama) -> None:
    config = ILoRAConfig(gate="trunk", gate_form="scale", target_modules="all-linear")
    model = get_peft_model(make_llama(), config)
    gate = model.base_model.ilora_gate["default"]
    first = (64 + 2 * EMBEDDED) * HIDDEN + HIDDEN
    embeddings = (2 + 7) * EMBEDDED  # layers, and projections of each
    assert sum(p.numel() for p in gate.parameters()) == first + embeddings + (HIDDEN + 1) * 16
    assert all(p.requires_grad for p in gate.parameters())


@trunk_works
def test_a_trunk_is_evaluated_once_a_forward_and_once_a_generate(make_adapted, ids, z) -> None:
    model, calls = make_adapted(gate="trunk", gate_form="scale"), []
    trunk = model.base_model.ilora_gate["default"].project
    trunk.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    model(input_ids=ids, routing_embeds=z)
    assert calls == [(8, 3, 16)]
    model.generate(input_ids=ids, routing_embeds=z, max_new_tokens=4, min_new_tokens=4)
    assert calls == [(8, 3, 16)] * 2
    model.train().enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    assert calls == [(8, 3, 16)] * 3


SPREADS = {
    "rows": ({}, (3,)),
    "beams": ({"times": 2}, (6,)),
    "guidance": ({"times": 2, "copies": 2}, (12,)),
    "doubled by guidance": ({"guided": True}, (6,)),
    "flattened": ({"lengths": (5,)}, (15,)),
    "one row": ({"sole": True}, (4,)),
    "images": ({"images": ImageRows((Images((2, 0, 2, 1), (1,)),))}, (4,)),
}


@pytest.mark.parametrize("name", SPREADS)
def test_coefficients_of_all_layers_are_spread_as_those_of_each(name) -> None:
    fields, leading = SPREADS[name]
    rows = 1 if name == "one row" else 3
    routing, given = Routing(torch.zeros(rows, D), "forward", **fields), torch.randn(4, rows, 2)
    of_images = name == "images"
    each = [routing.spread(one, leading, of_images) for one in given]
    assert each[0].shape == (*leading, 2)
    assert torch.equal(routing.spread(given, leading, of_images), torch.stack(each))


@pytest.mark.parametrize("form", ["softmax", *FREE])
def test_a_trunks_head_is_as_wide_as_the_largest_rank_and_cut(form, randomise) -> None:
    fields = {"gate": "trunk", "gate_form": form, "lora_alpha": 1}
    model = two(randomise, **fields, rank_pattern={"layers.0": 1}).double()
    wide, narrow = (layer.lora_variant["default"] for layer in model.base_model.model.layers[::-1])
    assert (narrow.rank, wide.rank) == (3, 6)
    z = torch.randn(2, D).double()
    full = narrow.gate(z, place=narrow.place)
    cut = narrow.coefficients_of(z)
    if form == "scale_shift":
        assert torch.equal(cut, torch.cat([full[:, :3], full[:, 6:9]], dim=1))
    elif form == "square":
        assert torch.equal(cut.view(2, 3, 3), full.view(2, 6, 6)[:, :3, :3])
    else:
        assert torch.equal(cut, full[:, :3])
    x = torch.randn(2, 4, N_IN).double()
    model(x, routing_embeds=z).sum().backward()
    assert model.routing_statistics().keys() == {"layers.0", "layers.1"}


# -------------------------------------------------------------------- in a model


@every_model
def test_rows_are_those_alone_by_keyword_and_context_with_and_without_a_cache(
    fields, make_adapted, ids, z
) -> None:
    model = make_adapted(**fields)
    logits = model(input_ids=ids, routing_embeds=z).logits
    with model.routing(z):
        assert torch.equal(model(input_ids=ids).logits, logits)
    alone = [
        model(input_ids=i[None], routing_embeds=r[None]).logits for i, r in zip(ids, z, strict=True)
    ]
    torch.testing.assert_close(torch.cat(alone), logits)
    assert not torch.allclose(model(input_ids=ids, routing_embeds=-z).logits, logits, atol=1e-3)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    greedy = model.generate(input_ids=ids, routing_embeds=z, **options)
    again = model.generate(input_ids=ids, routing_embeds=z, use_cache=False, **options)
    assert torch.equal(greedy, again)


@every_model
def test_beams_are_those_of_each_row_alone(fields, make_adapted, ids, z) -> None:
    model = make_adapted(**fields)
    options = {"max_new_tokens": 3, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    options |= {"eos_token_id": None}
    together = model.generate(input_ids=ids, routing_embeds=z, **options)
    alone = [
        model.generate(input_ids=i[None], routing_embeds=r[None], **options)
        for i, r in zip(ids, z, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


@every_model
def test_an_adapter_is_saved_and_loaded_also_onto_the_meta_device(
    fields, make_adapted, make_llama, ids, z, tmp_path
) -> None:
    model = make_adapted(**fields)
    expected = model(input_ids=ids, routing_embeds=z).logits
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        again = PeftModel.from_pretrained(
            make_llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, is_trainable=True
        ).eval()
        assert torch.equal(again(input_ids=ids, routing_embeds=z).logits, expected)
        assert all(p.requires_grad for n, p in again.named_parameters() if "ilora_" in n)
    frozen = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_adapters_of_several_forms_share_a_model_and_a_batch(make_adapted, ids, z) -> None:
    model = make_adapted(gate="trunk", gate_form="scale")
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    alone = {"default": model(input_ids=ids, routing_embeds=z).logits}
    for name, fields in MODELS.items():
        torch.manual_seed(5)
        key = name.replace(", ", "-").replace(" ", "_")
        targets = ["q_proj", "up_proj"]
        model.add_adapter(key, ILoRAConfig(routing_dim=8, target_modules=targets, **fields))
        for parameter_name, parameter in model.named_parameters():
            if f".{key}." in parameter_name:
                nn.init.normal_(parameter, std=0.3)
        model.set_adapter(key)
        alone[key] = model.eval()(input_ids=ids, routing_embeds=z).logits
    names = list(alone)
    for first in range(0, len(names), 2):
        rows = [names[first], "__base__", names[(first + 1) % len(names)]]
        mixed = model(input_ids=ids, routing_embeds=z, adapter_names=rows).logits
        expected = torch.stack([alone[rows[0]][0], base[1], alone[rows[2]][2]])
        torch.testing.assert_close(mixed, expected)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, base)
    model.set_adapter("default")
    model.delete_adapter(names[-1])
    assert torch.equal(model(input_ids=ids, routing_embeds=z).logits, alone["default"])


@every_form
@pytest.mark.parametrize("gate", ["linear", "trunk"])
def test_a_prompt_gate_makes_every_form(form, gate, make_adapted, ids) -> None:
    model = make_adapted(layers=1, gate_form=form, gate=gate, gate_input="prompt", routing_dim=32)
    given = make_adapted(layers=1, gate_form=form, gate=gate, routing_dim=32)
    expected = given(input_ids=ids, routing_embeds=model.prompt_embeds(ids)).logits
    torch.testing.assert_close(model(input_ids=ids).logits, expected)


@every_form
def test_a_token_gate_makes_every_form(form, layers, randomise) -> None:
    fields = {"gate_input": "token", "gate_scope": "per_module"}
    model = two(randomise, gate_form=form, target_modules=["0"], **fields).double()
    routed, last = model.base_model.model.layers
    a, b = routed.lora_A["default"].weight, routed.lora_B["default"].weight
    x = torch.randn(3, 4, N_IN, dtype=torch.float64)
    rows = []
    for token in x.flatten(0, 1):
        logits = routed.ilora_gate["default"].project.weight @ token
        rows.append(routed.base_layer(token) + 4 / 6 * naive_update(form, a, b, logits, token))
    expected = last(torch.tanh(torch.stack(rows)))
    torch.testing.assert_close(model(x).flatten(0, 1), expected)


@every_model
def test_a_model_is_copied_with_its_gate(fields, make_adapted, ids, z) -> None:
    model = make_adapted(layers=1, **fields)
    again = copy.deepcopy(model)
    expected = model(input_ids=ids, routing_embeds=z).logits
    for name, parameter in model.named_parameters():
        if "ilora_gate" in name:
            parameter.data.zero_()
    assert torch.equal(again(input_ids=ids, routing_embeds=z).logits, expected)
