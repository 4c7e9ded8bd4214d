"""torch.compile: one graph, the eager numbers, no recompilation for new routing values.

Tracing takes as long as the model has layers, so these have one, but for blocks that share a graph.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

PRECISION = "Precision and compilation"
SIGNS = (1, -1, 2)


def item(name: str):
    return pytest.mark.support(PRECISION, name, "works")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


TRUNK = {"gate": "trunk", "gate_form": "scale_shift"}
"""A gate that makes coefficients for each layer, in a form of two parts."""


@item("torch.compile (whole model)")
@pytest.mark.parametrize(
    ("way", "fields"),
    [("keyword", {}), ("context", {}), ("keyword", TRUNK)],
    ids=["keyword", "context", "trunk"],
)
def test_one_graph_serves_every_routing_value(make_adapted, ids, z, way, fields) -> None:
    llama = make_adapted(layers=1, **fields)
    counter = CompileCounter()
    compiled = torch.compile(llama, backend=counter, fullgraph=True)
    for sign in SIGNS:
        with torch.no_grad():
            expected = llama(input_ids=ids, routing_embeds=sign * z).logits
            if way == "keyword":
                actual = compiled(input_ids=ids, routing_embeds=sign * z).logits
            else:
                with llama.routing(sign * z):
                    actual = compiled(input_ids=ids).logits
            torch.testing.assert_close(actual, expected)
    assert counter.frame_count == 1


@item("torch.compile (one layer)")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_layer_is_one_graph_for_every_routing(llama, z, backend, trained) -> None:
    counter = CompileCounterWithBackend(backend)
    layer = llama.base_model.model.model.layers[0].self_attn.q_proj
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(5))
    for sign in SIGNS:
        with torch.set_grad_enabled(trained), llama.routing(sign * z):
            torch.testing.assert_close(compiled(x), layer(x))
    assert counter.frame_count == 1


@item("torch.compile (block by block)")
@pytest.mark.parametrize("fields", [{}, {"gate_scope": "per_module"}], ids=str)
def test_blocks_compiled_one_by_one_follow_each_new_routing(make_adapted, ids, z, fields) -> None:
    model, eager = make_adapted(**fields), make_adapted(**fields)
    counter = CompileCounter()
    for block in model.base_model.model.model.layers:
        block.compile(backend=counter, fullgraph=True)
    counts = []
    for sign in SIGNS:
        with torch.no_grad():
            actual = model(input_ids=ids, routing_embeds=sign * z).logits
            expected = eager(input_ids=ids, routing_embeds=sign * z).logits
        torch.testing.assert_close(actual, expected)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1] <= 2


@item("torch.compile (lengths and batches that vary)")
@pytest.mark.parametrize(
    ("dynamic", "fields"),
    [(True, {}), (None, {}), (True, TRUNK | {"gate_form": "square", "r": 1})],
    ids=["dynamic", "automatic", "dynamic, trunk"],
)
def test_new_lengths_and_batch_sizes_compile_no_more_than_under_plain_lora(
    make_adapted, dynamic, fields
) -> None:
    llama = make_adapted(layers=1, **fields)
    counter = CompileCounter()
    compiled = torch.compile(llama, backend=counter, fullgraph=True, dynamic=dynamic)
    generator = torch.Generator().manual_seed(5)
    for rows, length in ((3, 7), (2, 9), (5, 4), (4, 6), (7, 11)):
        ids = torch.randint(3, 60, (rows, length), generator=generator)
        z = torch.randn(rows, 8, generator=generator)
        with torch.no_grad():
            actual = compiled(input_ids=ids, routing_embeds=z).logits
            torch.testing.assert_close(actual, llama(input_ids=ids, routing_embeds=z).logits)
    assert counter.frame_count == (1 if dynamic else 2)


@item("torch.compile (generation with a static cache)")
def test_compiled_generation_with_a_static_cache_equals_eager(make_adapted, ids, z) -> None:
    model, eager = make_adapted(layers=1), make_adapted(layers=1)
    counter = CompileCounter()
    base = model.get_base_model()
    base.forward = torch.compile(base.forward, backend=counter, fullgraph=True)
    settings = {"max_new_tokens": 4, "do_sample": False}
    counts = []
    for sign in SIGNS:
        actual = model.generate(
            input_ids=ids, routing_embeds=sign * z, cache_implementation="static", **settings
        )
        expected = eager.generate(input_ids=ids, routing_embeds=sign * z, **settings)
        assert torch.equal(actual, expected)
        counts.append(counter.frame_count)
    assert counts == [2, 2, 2]  # the prompt's, and the one of a single new token


def assert_trains_alike(compiled, eager, ids, z, **tolerance) -> None:
    for sign in SIGNS[:2]:
        for model in (compiled, eager):
            model.zero_grad()
            model(input_ids=ids, labels=ids, routing_embeds=sign * z).loss.backward()
        expected = {n: p.grad for n, p in eager.named_parameters() if p.grad is not None}
        assert any("ilora_gate" in name for name in expected)
        for name, parameter in compiled.named_parameters():
            name = name.removeprefix("_orig_mod.")
            if name in expected:
                torch.testing.assert_close(
                    parameter.grad, expected[name], msg=f"{name}", **tolerance
                )


@item("torch.compile (training)")
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["v_proj"], "gate": "mlp", "gate_scope": "per_module"},
        {"target_modules": ["q_proj", "down_proj"], **TRUNK},
    ],
    ids=["shared", "per_module, mlp", "trunk"],
)
def test_a_compiled_training_step_has_the_eager_gradients(make_adapted, ids, z, config) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model, eager = (make_adapted(layers=1, **config).train() for _ in range(2))
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    assert_trains_alike(compiled, eager, ids, z)
    assert counter.frame_count == 1


@item("torch.compile (gradient checkpointing)")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("reentrant", "fields"),
    [(False, {}), (True, {}), (False, TRUNK)],
    ids=["non-reentrant", "reentrant", "trunk"],
)
def test_a_compiled_step_with_checkpointed_blocks_has_the_eager_gradients(
    make_adapted, ids, z, reentrant, fields
) -> None:
    few = {"target_modules": ["q_proj", "down_proj"], "layers": 1, **fields}
    model = make_adapted(**few).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.disable_input_require_grads()  # PEFT's hook breaks the graph, in torch's words
    model.config.use_cache = False
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    assert_trains_alike(compiled, make_adapted(**few).train(), ids, z)
    assert counter.frame_count <= 2  # the first forward lets the blocks know their routing


@pytest.mark.long
@item("torch.compile (training)")
def test_inductor_trains_to_the_eager_gradients(make_adapted, ids, z) -> None:
    few = {"target_modules": ["q_proj", "v_proj", "down_proj"], "layers": 1}
    eager, compiled = make_adapted(**few).train(), torch.compile(make_adapted(**few).train())
    assert_trains_alike(compiled, eager, ids, z, rtol=1e-3, atol=1e-5)
