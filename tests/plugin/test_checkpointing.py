"""Gradients under gradient checkpointing are those of the plain backward."""

import threading

import pytest
import torch
from peft import get_peft_model, prepare_model_for_kbit_training

from peft_ilora import ILoRAConfig


def item(way: str) -> pytest.MarkDecorator:
    return pytest.mark.support(
        "Precision and compilation", f"gradient checkpointing ({way})", "works"
    )


MODES = [
    pytest.param(False, id="non-reentrant", marks=item("non-reentrant")),
    pytest.param(True, id="reentrant", marks=item("reentrant")),
]


def gradients(model) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(actual: dict, expected: dict, **tolerance: float) -> None:
    assert actual.keys() == expected.keys() and actual
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name, **tolerance)


def checkpointed(make_adapted, reentrant: bool, **config):
    model = make_adapted(**config).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def loss(model, ids, z) -> torch.Tensor:
    return model(input_ids=ids, labels=ids, routing_embeds=z, use_cache=False).loss


GATES = {
    "shared": {},
    "per_module": {"gate_scope": "per_module"},
    "softmax, trunk": {"gate": "trunk"},
    "sigmoid": {"gate_form": "sigmoid"},
    "scale, trunk": {"gate": "trunk", "gate_form": "scale"},
    "shift, per_module": {"gate_form": "shift", "gate_scope": "per_module"},
    "scale_shift, trunk": {"gate": "trunk", "gate_form": "scale_shift"},
    "square, trunk": {"gate": "trunk", "gate_form": "square", "r": 2},
}


@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("fields", GATES.values(), ids=GATES)
def test_gradients_equal_those_without_checkpointing(
    make_adapted, ids, z, reentrant, fields
) -> None:
    plain = make_adapted(**fields).train()
    loss(plain, ids, z).backward()
    model = checkpointed(make_adapted, reentrant, **fields)
    loss(model, ids, z).backward()
    assert_same(gradients(model), gradients(plain))


TWO_GATES = [{}, GATES["scale_shift, trunk"]]
"""The paper's, and one that makes coefficients for each layer."""


@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("fields", TWO_GATES, ids=str)
def test_each_of_two_forwards_recomputes_under_its_own_routing(
    make_adapted, ids, z, reentrant, fields
) -> None:
    plain = make_adapted(**fields).train()
    (loss(plain, ids, z) + 2 * loss(plain, ids.flip(0), -z)).backward()
    model = checkpointed(make_adapted, reentrant, **fields)
    first = loss(model, ids, z)
    second = loss(model, ids.flip(0), -z)
    (first + 2 * second).backward()
    assert_same(gradients(model), gradients(plain))


@pytest.mark.parametrize("reentrant", MODES)
def test_backward_works_after_the_context_has_ended_and_in_another_thread(
    make_adapted, ids, z, reentrant
) -> None:
    plain = make_adapted().train()
    loss(plain, ids, z).backward()
    model = checkpointed(make_adapted, reentrant)
    with model.routing(z):
        value = model(input_ids=ids, labels=ids).loss
    thread = threading.Thread(target=value.backward)  # as autograd's own threads on a GPU
    thread.start()
    thread.join()
    assert_same(gradients(model), gradients(plain))


@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("fields", TWO_GATES, ids=str)
def test_the_routing_embedding_itself_receives_its_gradient(
    make_adapted, ids, z, reentrant, fields
) -> None:
    seed = torch.randn(3, 8, requires_grad=True)
    plain = make_adapted(**fields).train()
    loss(plain, ids, seed.tanh() * 2 + z).backward()
    expected, seed.grad = seed.grad, None
    model = checkpointed(make_adapted, reentrant, **fields)
    loss(model, ids, seed.tanh() * 2 + z).backward()
    torch.testing.assert_close(seed.grad, expected)


@pytest.mark.parametrize("reentrant", MODES)
def test_a_context_binds_the_inner_model_called_past_the_wrapper(
    make_adapted, ids, z, reentrant
) -> None:
    plain = make_adapted().train()
    with plain.routing(z):
        plain.base_model.model.model(ids, use_cache=False).last_hidden_state.sum().backward()
    model = checkpointed(make_adapted, reentrant)
    with model.routing(z):
        value = model.base_model.model.model(ids, use_cache=False).last_hidden_state.sum()
    with model.routing(-z):  # another forward's context must not leak into the recomputation
        value.backward()
    assert_same(gradients(model), gradients(plain))


@item("before PEFT wraps the model")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_enabled_on_the_base_before_it_is_wrapped(
    make_llama, make_adapted, randomise, ids, z, reentrant
) -> None:
    plain = make_adapted().train()
    loss(plain, ids, z).backward()
    base = make_llama()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    config = ILoRAConfig(
        routing_dim=8,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = randomise(get_peft_model(base, config)).train()
    loss(model, ids, z).backward()
    assert_same(gradients(model), gradients(plain))


@item("by PEFT's prepare_model_for_kbit_training")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_prepared_by_peft(
    make_llama, make_adapted, randomise, ids, z, reentrant
) -> None:
    plain = make_adapted().train()
    loss(plain, ids, z).backward()
    base = make_llama()
    base.is_loaded_in_8bit = True  # PEFT prepares the checkpointing of quantised models only
    prepare_model_for_kbit_training(
        base, gradient_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    del base.is_loaded_in_8bit
    assert base.model.gradient_checkpointing
    config = ILoRAConfig(
        routing_dim=8,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = randomise(get_peft_model(base, config)).train()
    loss(model, ids, z).backward()
    assert_same(gradients(model), gradients(plain))


@item("under autocast")
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_under_autocast_has_the_gradients_of_the_plain_backward(
    make_adapted, ids, z, reentrant
) -> None:
    plain = make_adapted().train()
    model = checkpointed(make_adapted, reentrant)
    for each in (plain, model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(each, ids, z)
        value.backward()
    expected = gradients(plain)
    largest = max(float(grad.abs().max()) for grad in expected.values())
    # autocast sums the gradients of a weight that it casts once for several layers in bfloat16
    assert_same(gradients(model), expected, rtol=0.02, atol=0.01 * largest)


def test_a_forward_without_routing_recomputes_without_it(make_adapted, ids, z) -> None:
    model = checkpointed(make_adapted, False, missing_routing="uniform")
    value = model(input_ids=ids, labels=ids).loss
    with model.routing(z):
        value.backward()
    assert not any(g.any() for name, g in gradients(model).items() if "ilora_gate" in name)


@item("torch's CheckpointWrapper")
@pytest.mark.parametrize("fields", TWO_GATES, ids=str)
def test_torchs_checkpoint_wrapper_recomputes_under_its_routing(
    make_adapted, ids, z, fields
) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    plain = make_adapted(**fields).train()
    loss(plain, ids, z).backward()
    model = make_adapted(**fields).train()
    layer = type(model.base_model.model.model.layers[0])
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, layer))
    loss(model, ids, z).backward()
    actual = {n.replace("_checkpoint_wrapped_module.", ""): g for n, g in gradients(model).items()}
    assert_same(actual, gradients(plain))


def test_disabling_checkpointing_and_unloading_leaves_the_model_as_it_was(
    make_adapted, ids, z
) -> None:
    from peft_ilora.routing.checkpointing import RoutedCheckpoint

    model = checkpointed(make_adapted, False)
    loss(model, ids, z).backward()
    base = model.base_model.model
    layers = base.model.layers
    assert isinstance(layers[0]._gradient_checkpointing_func, RoutedCheckpoint)
    model.unload()
    assert not isinstance(layers[0]._gradient_checkpointing_func, RoutedCheckpoint)
    assert "generate" not in vars(base)
    base.train()
    base(input_ids=ids, labels=ids)
