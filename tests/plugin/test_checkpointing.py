"""Gradients under gradient checkpointing are those of the plain backward."""

import threading

import pytest
import torch

MODES = [False, True]


def gradients(model) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys() and actual
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name)


def checkpointed(make_adapted, reentrant: bool, **config):
    model = make_adapted(**config).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def loss(model, ids, z) -> torch.Tensor:
    return model(input_ids=ids, labels=ids, routing_embeds=z).loss


@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_gradients_equal_those_without_checkpointing(
    make_adapted, ids, z, reentrant, scope
) -> None:
    plain = make_adapted(gate_scope=scope).train()
    loss(plain, ids, z).backward()
    model = checkpointed(make_adapted, reentrant, gate_scope=scope)
    loss(model, ids, z).backward()
    assert_same(gradients(model), gradients(plain))


@pytest.mark.parametrize("reentrant", MODES)
def test_each_of_two_forwards_recomputes_under_its_own_routing(
    make_adapted, ids, z, reentrant
) -> None:
    plain = make_adapted().train()
    (loss(plain, ids, z) + 2 * loss(plain, ids.flip(0), -z)).backward()
    model = checkpointed(make_adapted, reentrant)
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
def test_the_routing_embedding_itself_receives_its_gradient(
    make_adapted, ids, z, reentrant
) -> None:
    seed = torch.randn(3, 8, requires_grad=True)
    plain = make_adapted().train()
    loss(plain, ids, seed.tanh() * 2 + z).backward()
    expected, seed.grad = seed.grad, None
    model = checkpointed(make_adapted, reentrant)
    loss(model, ids, seed.tanh() * 2 + z).backward()
    torch.testing.assert_close(seed.grad, expected)


@pytest.mark.parametrize("reentrant", MODES)
def test_a_context_binds_the_inner_model_called_past_the_wrapper(
    make_adapted, ids, z, reentrant
) -> None:
    plain = make_adapted().train()
    with plain.routing(z):
        plain.base_model.model.model(ids).last_hidden_state.sum().backward()
    model = checkpointed(make_adapted, reentrant)
    with model.routing(z):
        value = model.base_model.model.model(ids).last_hidden_state.sum()
    with model.routing(-z):  # another forward's context must not leak into the recomputation
        value.backward()
    assert_same(gradients(model), gradients(plain))


def test_a_forward_without_routing_recomputes_without_it(make_adapted, ids, z) -> None:
    model = checkpointed(make_adapted, False, missing_routing="uniform")
    value = model(input_ids=ids, labels=ids).loss
    with model.routing(z):
        value.backward()
    assert not any("ilora_gate" in name for name in gradients(model))


def test_torchs_checkpoint_wrapper_recomputes_under_its_routing(make_adapted, ids, z) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    plain = make_adapted().train()
    loss(plain, ids, z).backward()
    model = make_adapted().train()
    layer = type(model.base_model.model.model.layers[0])
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, layer))
    loss(model, ids, z).backward()
    actual = {n.replace("_checkpoint_wrapped_module.", ""): g for n, g in gradients(model).items()}
    assert_same(actual, gradients(plain))


def test_disabling_checkpointing_and_unloading_leaves_the_model_as_it_was(
    make_adapted, ids, z
) -> None:
    from peft_ilora.hooks import RoutedCheckpoint

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
