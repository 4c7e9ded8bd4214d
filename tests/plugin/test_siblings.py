"""Layers that read the same input, and the layer that computes base and update in one."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from threading import Thread

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from peft_ilora import ILoRAConfig
from peft_ilora.fast.dropout import draw_mask, rescale
from peft_ilora.fast.linear import Linear
from peft_ilora.fast.siblings import followers

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj"]


class Attention(nn.Module):
    """Four projections; `between` sees the input after each of them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.between = between
        for name, width in zip(NAMES, (6, 4, 4, 5), strict=True):
            setattr(self, name, nn.Linear(6 if name == "o_proj" else 5, width))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_proj(x)
        x = self.between(x)
        k = self.k_proj(x)
        x = self.between(x)
        return self.o_proj(q + torch.cat((k, self.v_proj(x)[..., :2]), dim=-1))


def routed(randomise, between=lambda x: x, **fields) -> PeftModel:
    torch.manual_seed(0)
    config = ILoRAConfig(routing_dim=3, num_experts=2, r=2, target_modules=NAMES, **fields)
    return randomise(get_peft_model(Attention(between), config))


def leaves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 5, generator=generator).requires_grad_()
    return x, torch.randn(4, 3, generator=generator).requires_grad_()


def gradients(model: PeftModel) -> list[Tensor]:
    """Of the output, by everything that has one; a leaf's own comes last but one."""
    x, z = leaves()
    model.zero_grad()
    out = model(x * 1, routing_embeds=z)
    out.square().sum().backward()
    parameters = [p.grad for p in model.parameters() if p.grad is not None]
    return [out.detach(), *parameters, x.grad, z.grad]


def alone(model: PeftModel) -> PeftModel:
    """Without sharing: every layer on its own."""
    for module in model.modules():
        for update in getattr(module, "lora_variant", {}).values():
            update.followers = ()
    return model


def by_peft(model: PeftModel) -> PeftModel:
    """With PEFT's own forward, which shows the update the base layer's output."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = lora.Linear
    return model


def products(model: PeftModel, monkeypatch) -> list[int]:
    """How many A each product of a forward takes."""
    from peft_ilora.fast import linear

    taken: list[int] = []

    def counting(base, x, downs, *rest, **named):
        taken.append(len(downs))
        return original(base, x, downs, *rest, **named)

    original = linear.fused_product
    monkeypatch.setattr(linear, "fused_product", counting)
    x, z = leaves()
    model(x * 1, routing_embeds=z)
    return taken


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b, strict=True)
    )


def test_followers_are_the_later_siblings_that_are_adapted() -> None:
    names = ["a.q_proj", "a.v_proj", "b.k_proj", "b.v_proj", "a.o_proj", "up_proj", "gate_proj"]
    found = {name: followers(name, names) for name in names}
    assert {name: later for name, later in found.items() if later} == {
        "a.q_proj": ["a.v_proj"],
        "b.k_proj": ["b.v_proj"],
        "gate_proj": ["up_proj"],
    }


def test_siblings_share_one_product_and_compute_what_they_do_alone(randomise, monkeypatch) -> None:
    assert products(routed(randomise), monkeypatch) == [3, 0, 0, 1]
    assert equal(gradients(routed(randomise)), gradients(alone(routed(randomise))))


def test_base_and_update_in_one_are_what_pefts_own_forward_computes(randomise) -> None:
    ours = routed(randomise)
    assert {type(m) for m in ours.modules() if isinstance(m, lora.Linear)} == {Linear}
    assert equal(gradients(ours), gradients(by_peft(routed(randomise))))


@pytest.mark.parametrize("form", ["together", "by PEFT", "without gradients"])
def test_siblings_share_one_dropout_mask(randomise, form) -> None:
    model = routed(randomise, lora_dropout=0.4).train()
    model = by_peft(model) if form == "by PEFT" else model
    x, z = leaves()
    torch.manual_seed(7)
    with torch.set_grad_enabled(form != "without gradients"):
        got = model(x * 1, routing_embeds=z)

    torch.manual_seed(7)
    masks = {"first": draw_mask(0.4), "o_proj": draw_mask(0.4)}
    weights = model.gate_weights(z).repeat_interleave(2, dim=-1)[:, None] * rescale(0.4)

    def project(name: str, x: Tensor) -> Tensor:
        layer = getattr(model.base_model.model, name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        scale = weights * layer.scaling["default"]
        hidden = (x * masks.get(name, masks["first"]).kept(x)) @ a.T
        return layer.base_layer(x) + (hidden * scale) @ b.T

    k, v = project("k_proj", x), project("v_proj", x)
    expected = project("o_proj", project("q_proj", x) + torch.cat((k, v[..., :2]), dim=-1))
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda x: x + 1, id="another input"),
        pytest.param(lambda x: x.add_(1), id="the input written to"),
        pytest.param(lambda x: x.clone(), id="a copy"),
    ],
)
def test_a_sibling_with_another_input_computes_its_own(randomise, between, monkeypatch) -> None:
    with torch.no_grad():  # gradients do not survive the written input
        x, z = leaves()
        got = routed(randomise, between, lora_dropout=0.0)(x * 1, routing_embeds=z)
        expected = alone(routed(randomise, between))(x * 1, routing_embeds=z)
        assert torch.allclose(got, expected, atol=1e-5)
        dropping = routed(randomise, between, lora_dropout=0.3).train()
        assert products(dropping, monkeypatch) == [3, 2, 1, 1]


def test_what_was_computed_without_gradients_is_not_taken_with_them(randomise) -> None:
    class Mixed(Attention):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                q = self.q_proj(x)
            return self.o_proj(q + torch.cat((self.k_proj(x), self.v_proj(x)[..., :2]), dim=-1))

    torch.manual_seed(0)
    config = ILoRAConfig(routing_dim=3, num_experts=2, r=2, target_modules=NAMES, lora_dropout=0.1)
    model = randomise(get_peft_model(Mixed(), config)).train()
    x, z = leaves()
    model(x * 1, routing_embeds=z).sum().backward()
    trained = {name: p.grad is not None for name, p in model.named_parameters() if "lora_" in name}
    assert {name.split(".")[2] for name, has in trained.items() if not has} == {"q_proj"}


def test_nothing_is_left_for_later_when_a_forward_fails(randomise) -> None:
    def fails(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model = routed(randomise, fails)
    x, z = leaves()
    with pytest.raises(KeyboardInterrupt):
        model(x * 1, routing_embeds=z)
    model.base_model.model.between = lambda x: x
    assert equal(gradients(model), gradients(routed(randomise)))
    assert len(model.base_model.routing_state.stack) == 1  # a frame ends with what it holds


def test_two_threads_share_nothing(randomise) -> None:
    model, expected = routed(randomise), gradients(routed(randomise))[0]
    found: list[Tensor] = []

    def run() -> None:
        for _ in range(20):
            x, z = leaves()
            found.append(model(x * 1, routing_embeds=z).detach())

    threads = [Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    assert all(torch.allclose(one, expected, atol=1e-5) for one in found)


@pytest.mark.parametrize("where", ["base_layer", "lora_A", "everywhere"])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_hooks_see_what_they_hang_on(randomise, where, with_gradients) -> None:
    model, seen = routed(randomise), []
    layer = model.base_model.model.k_proj
    part = {"base_layer": layer.base_layer, "lora_A": layer.lora_A["default"]}

    def hook(module: nn.Module, *_: object) -> None:
        if module in (*part.values(), layer):
            seen.append(module)

    if where == "everywhere":
        handle = nn.modules.module.register_module_forward_hook(hook)
    else:
        handle = part[where].register_forward_hook(hook)
    x, z = leaves()
    with torch.set_grad_enabled(with_gradients):
        got = model(x * 1, routing_embeds=z)
    handle.remove()
    assert set(part.values()) <= set(seen) if where == "everywhere" else seen == [part[where]]
    assert torch.allclose(got, model(x * 1, routing_embeds=z), atol=1e-5)


def test_a_base_layer_that_trains_gets_its_gradients(randomise) -> None:
    model = routed(randomise)
    layer = model.base_model.model.q_proj.base_layer.requires_grad_(True)
    expected = by_peft(routed(randomise))
    expected.base_model.model.q_proj.base_layer.requires_grad_(True)
    assert equal(gradients(model), gradients(expected))
    assert layer.weight.grad.any()
    assert layer.bias.grad.any()


def test_a_half_precision_base_is_updated_as_by_peft(randomise) -> None:
    x, z = leaves()
    outs = []
    for model in (routed(randomise), by_peft(routed(randomise))):
        model.base_model.model.to(torch.bfloat16)
        for layer in model.modules():
            if isinstance(layer, lora.Linear):
                layer.lora_A.float()
                layer.lora_B.float()
        outs.append(model(x.bfloat16(), routing_embeds=z))
    assert outs[0].dtype == torch.bfloat16
    assert torch.allclose(outs[0].float(), outs[1].float(), atol=0.05)


class Checkpointed(Attention):
    """Attention that checkpoints its keys by itself."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_proj(x)
        k = checkpoint(self.k_proj, x, use_reentrant=self.reentrant)
        return self.o_proj(q + torch.cat((k, self.v_proj(x)[..., :2]), dim=-1))


class Whole(nn.Module):
    """Attention that is checkpointed as a whole, past the plugin's eyes."""

    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.attention, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("kind", [Checkpointed, Whole])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_that_checkpoints_by_itself_gets_the_gradients_of_its_own_masks(
    randomise, kind, reentrant
) -> None:
    torch.manual_seed(0)
    config = ILoRAConfig(
        routing_dim=3,
        num_experts=2,
        r=2,
        target_modules=NAMES,
        lora_dropout=0.4,
        missing_routing="uniform",
    )
    base = kind()
    base.reentrant = reentrant
    model = randomise(get_peft_model(base, config)).double().train()
    x, _ = leaves()

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return model(x).square().sum()

    x = x.detach().double().requires_grad_()
    loss(x).backward()
    step = torch.zeros_like(x)
    step[0, 1, 2] = 1e-5
    ahead, behind = ((x.detach() + sign * step).requires_grad_() for sign in (1, -1))
    difference = (loss(ahead) - loss(behind)) / 2e-5
    assert torch.allclose(x.grad[0, 1, 2], difference, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_block_that_its_user_checkpoints_gets_the_gradients_of_its_own_masks(
    make_adapted, z, reentrant, inside
) -> None:
    model = make_adapted(lora_dropout=0.4, target_modules=["q_proj", "k_proj", "v_proj"]).double()
    block = model.train().base_model.model.model.layers[0].self_attn
    x, direction = torch.randn(2, 3, 5, block.config.hidden_size, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        read = (block.q_proj(x), block.k_proj(x), block.v_proj(x))
        return torch.stack([part.square().sum() for part in read]).sum()

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return checkpoint(run, x, use_reentrant=reentrant)

    x.requires_grad_()
    with model.routing(z.double()):
        value = loss(x)
        if inside:
            value.backward()
        step = 1e-6 * direction
        difference = (loss(x + step) - loss(x - step)) / 2e-6
    if not inside:
        with model.routing(z.double()):
            value.backward()
    assert torch.allclose((x.grad * direction).sum(), difference, rtol=1e-5)


def test_selective_checkpointing_keeps_outputs_that_nothing_writes_to(make_adapted, ids, z) -> None:
    def policy(context, op, *args, **kwargs):
        products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        keeps = op in products
        return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE

    found = []
    for selective in (False, True):
        model = make_adapted().train()
        if selective:
            model.enable_input_require_grads()
            contexts = partial(create_selective_checkpoint_contexts, policy)
            model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        model(input_ids=ids, labels=ids, routing_embeds=z, use_cache=False).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert equal(*found)


def test_a_sibling_that_does_not_run_has_no_gradient(randomise) -> None:
    class Queries(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return self.o_proj(self.q_proj(x))

    torch.manual_seed(0)
    config = ILoRAConfig(routing_dim=3, num_experts=2, r=2, target_modules=NAMES)
    model = randomise(get_peft_model(Queries(), config))
    unused = model.base_model.model.k_proj.lora_A["default"].weight
    unused.data.fill_(torch.nan)
    found = gradients(model)
    assert unused.grad is None
    assert all(gradient.isfinite().all() for gradient in found)


def test_layers_called_outside_of_a_forward_leave_nothing_behind(randomise) -> None:
    model = routed(randomise, missing_routing="uniform")
    layer, later = model.base_model.model.q_proj, model.base_model.model.k_proj
    x, _ = leaves()
    layer(x).sum().backward()
    later(x).sum().backward()
    hidden = x * 1
    layer(hidden)
    gone = weakref.ref(hidden)
    del hidden
    gc.collect()
    assert gone() is None


def test_nothing_of_the_input_outlives_a_forward(randomise) -> None:
    model = routed(randomise)
    x, z = leaves()
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            hidden = x * 1
            model(hidden, routing_embeds=z)
        gone = weakref.ref(hidden)
        del hidden
        gc.collect()
        assert gone() is None


def test_forward_derivatives_and_traces_come_as_from_plain_layers(randomise) -> None:
    model = routed(randomise).eval()
    x, z = (leaf.detach() for leaf in leaves())
    tangent = torch.ones_like(x)
    with forward_ad.dual_level():
        out = model(forward_ad.make_dual(x, tangent), routing_embeds=z)
        got = forward_ad.unpack_dual(out).tangent
    step = 1e-2
    expected = model(x + step * tangent, routing_embeds=z) - model(x, routing_embeds=z)
    assert torch.allclose(got, expected / step, atol=1e-3)


def test_adapters_are_disabled_where_layers_have_been_dropped(make_adapted, ids, z) -> None:
    model = make_adapted()
    llama = model.base_model.model.model
    llama.layers = nn.ModuleList(list(llama.layers)[1:])
    for index, layer in enumerate(llama.layers):
        layer.self_attn.layer_idx = index
    routed = model(input_ids=ids, routing_embeds=z, use_cache=False).logits
    with model.disable_adapter():
        assert not torch.allclose(model(input_ids=ids, use_cache=False).logits, routed)
