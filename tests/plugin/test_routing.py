"""What `routing_embeds` promises, in every way of passing it."""

import threading
import warnings

import pytest
import torch
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from peft_ilora import ILoRAConfig

MISSING = "routing_embeds is missing: adapter 'default'"
TINY = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "pad_token_id": 0,
}
HEADS = {
    "SEQ_CLS": LlamaForSequenceClassification,
    "TOKEN_CLS": LlamaForTokenClassification,
    "QUESTION_ANS": LlamaForQuestionAnswering,
    "FEATURE_EXTRACTION": LlamaModel,
}


def first(output) -> torch.Tensor:
    return output[0]


@pytest.mark.support("Adapter lifecycle", "context, for code that passes no keyword", "works")
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_keyword_and_context_agree_and_rows_differ_by_their_routing(
    make_adapted, ids, z, task_type
) -> None:
    model = make_adapted(task_type=task_type)
    by_keyword = model(input_ids=ids, routing_embeds=z).logits
    with model.routing(z):
        by_context = model(input_ids=ids).logits
    torch.testing.assert_close(by_keyword, by_context)
    other = model(input_ids=ids, routing_embeds=-z).logits
    assert (by_keyword - other).abs().max() > 1e-3


@pytest.mark.parametrize("task_type", HEADS)
def test_keyword_works_with_every_head(task_type, ids, z, randomise) -> None:
    torch.manual_seed(0)
    base = HEADS[task_type](LlamaConfig(**TINY)).eval()
    config = ILoRAConfig(routing_dim=8, task_type=task_type, target_modules=["q_proj", "v_proj"])
    model = randomise(get_peft_model(base, config)).eval()
    routed = first(model(input_ids=ids, routing_embeds=z))
    with model.routing(z):
        torch.testing.assert_close(first(model(input_ids=ids)), routed)
    with pytest.raises(ValueError, match=MISSING):
        model(input_ids=ids)


def test_keyword_works_with_an_encoder_decoder(ids, z, randomise) -> None:
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(
        T5Config(
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            vocab_size=60,
            decoder_start_token_id=0,
        )
    ).eval()
    config = ILoRAConfig(routing_dim=8, task_type="SEQ_2_SEQ_LM", target_modules=["q", "v", "wo"])
    model = randomise(get_peft_model(base, config)).eval()
    logits = model(input_ids=ids, labels=ids[:, :4].contiguous(), routing_embeds=z).logits
    for row in range(3):
        one = slice(row, row + 1)
        alone = model(
            input_ids=ids[one], labels=ids[one, :4].contiguous(), routing_embeds=z[one]
        ).logits
        torch.testing.assert_close(alone, logits[one], rtol=1e-4, atol=1e-5)


def test_a_plain_module_takes_the_keyword(z) -> None:
    model = get_peft_model(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        ILoRAConfig(routing_dim=8, target_modules=["0", "2"]),
    )
    assert model(torch.randn(3, 4), routing_embeds=z).shape == (3, 2)


def test_a_forward_without_routing_raises_before_anything_runs(llama, ids, z) -> None:
    llama(input_ids=ids, routing_embeds=z)
    ran = []
    llama.get_input_embeddings().register_forward_hook(lambda *_: ran.append(True))
    with pytest.raises(ValueError, match=MISSING):
        llama(input_ids=ids)
    assert not ran


def test_the_inner_model_called_past_the_wrapper_raises_too(llama, ids, z) -> None:
    inner = llama.base_model.model.model
    with pytest.raises(ValueError, match=MISSING):
        inner(ids)
    with llama.routing(z):
        assert inner(ids).last_hidden_state.shape == (3, 7, 32)


def test_nothing_is_left_behind_by_a_context_or_by_an_exception(llama, ids, z) -> None:
    with llama.routing(z):
        llama(input_ids=ids)
    with pytest.raises(ValueError, match=MISSING):
        llama(input_ids=ids)

    def explode(*_) -> None:
        raise RuntimeError("inside the forward")

    handle = llama.base_model.model.model.layers[1].register_forward_hook(explode)
    with pytest.raises(RuntimeError, match="inside the forward"):
        llama(input_ids=ids, routing_embeds=z)
    handle.remove()
    with pytest.raises(ValueError, match=MISSING):
        llama(input_ids=ids)


def test_a_keyboard_interrupt_in_a_forward_leaves_no_routing_for_the_next(llama, ids, z) -> None:
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    handle = llama.base_model.model.model.layers[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        llama(input_ids=ids, routing_embeds=z)
    handle.remove()
    with pytest.raises(ValueError, match=MISSING):
        llama(input_ids=ids)


def test_a_failed_forward_inside_a_context_keeps_the_context(llama, ids, z) -> None:
    with llama.routing(z):
        expected = llama(input_ids=ids).logits
        with pytest.raises(ValueError, match="has 3 rows but the model's input has 2"):
            llama(input_ids=ids[:2])
        torch.testing.assert_close(llama(input_ids=ids).logits, expected)


@pytest.mark.parametrize(
    ("routing", "error", "message"),
    [
        (torch.zeros(2, 8), ValueError, "routing_embeds has 2 rows but the model's input has 3"),
        (torch.zeros(6, 8), ValueError, "routing_embeds has 6 rows but the model's input has 3"),
        (torch.zeros(3, 9), ValueError, r"shape \(3, 9\) but adapter 'default' .* routing_dim=8"),
        (torch.zeros(8), ValueError, r"routing_embeds has shape \(8,\); .*unsqueeze"),
        (torch.zeros(3, 1, 8), ValueError, r"routing_embeds has shape \(3, 1, 8\)"),
        (torch.zeros(0, 8), ValueError, r"routing_embeds has shape \(0, 8\)"),
        (torch.full((3, 8), float("nan")), ValueError, r"NaN or infinity in rows \[0, 1, 2\]"),
        (torch.full((3, 8), float("inf")), ValueError, "NaN or infinity"),
        (torch.zeros(3, 8, dtype=torch.long), TypeError, "dtype torch.int64; pass a float"),
        (torch.zeros(3, 8, dtype=torch.bool), TypeError, "dtype torch.bool"),
        ([[0.0] * 8] * 3, TypeError, "routing_embeds is a list"),
    ],
    ids=str,
)
def test_bad_routing_is_refused_before_anything_runs(llama, ids, routing, error, message) -> None:
    ran = []
    llama.get_input_embeddings().register_forward_hook(lambda *_: ran.append(True))
    with pytest.raises(error, match=message):
        llama(input_ids=ids, routing_embeds=routing)
    with pytest.raises(error, match=message):
        llama.generate(input_ids=ids, routing_embeds=routing, max_new_tokens=2)
    assert not ran


def test_a_routing_without_values_is_refused_by_keyword_and_by_context(make_adapted, ids) -> None:
    for z, config in (
        (torch.zeros(3, 8, device="meta"), {}),
        (torch.zeros(3, dtype=torch.long, device="meta"), {"gate": "hard"}),
    ):
        model = make_adapted(**config)
        with pytest.raises(ValueError, match="on the meta device, where tensors have no values"):
            model(input_ids=ids, routing_embeds=z)
        with pytest.raises(ValueError, match="on the meta device"), model.routing(z):
            pass


def test_one_nan_row_is_named(llama, ids, z) -> None:
    z[1, 3] = float("nan")
    with pytest.raises(ValueError, match=r"in rows \[1\]"):
        llama(input_ids=ids, routing_embeds=z)


def test_off_the_cpu_the_finite_check_does_not_read_the_answer_back(monkeypatch) -> None:
    from peft_ilora.routing.checks import checked_embeds

    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda flag, message: asserted.append(flag.device))
    checked_embeds(torch.zeros(2, 8, device="meta"), {})
    assert [device.type for device in asserted] == ["meta"]


def test_half_precision_routing_is_accepted(llama, ids, z) -> None:
    rounded = z.bfloat16()
    torch.testing.assert_close(
        llama(input_ids=ids, routing_embeds=rounded).logits,
        llama(input_ids=ids, routing_embeds=rounded.float()).logits,
    )


def test_nested_and_doubled_routing_is_refused(llama, ids, z) -> None:
    with llama.routing(z):
        with pytest.raises(RuntimeError, match="already open in this thread"), llama.routing(z):
            pass
        with pytest.raises(ValueError, match="use one of the two"):
            llama(input_ids=ids, routing_embeds=z)
        with pytest.raises(ValueError, match="use one of the two"):
            llama.generate(input_ids=ids, routing_embeds=z)


def test_a_disabled_adapter_is_the_base_model_with_and_without_routing(
    llama, make_llama, ids, z
) -> None:
    base = make_llama()(input_ids=ids).logits
    routed = llama(input_ids=ids, routing_embeds=z).logits
    with llama.disable_adapter():
        torch.testing.assert_close(llama(input_ids=ids).logits, base)
        torch.testing.assert_close(llama(input_ids=ids, routing_embeds=z).logits, base)
        assert llama.generate(input_ids=ids, routing_embeds=z, max_new_tokens=2).shape == (3, 9)
    torch.testing.assert_close(llama(input_ids=ids, routing_embeds=z).logits, routed)


def test_uniform_mixes_evenly_where_routing_is_missing(make_adapted, ids, z) -> None:
    model = make_adapted(missing_routing="uniform")
    torch.testing.assert_close(
        model(input_ids=ids).logits,
        model(input_ids=ids, routing_embeds=torch.zeros_like(z)).logits,
    )


@pytest.mark.parametrize("config", [{}, {"gate_scope": "per_module"}], ids=str)
def test_an_even_mix_gives_the_gate_a_gradient_of_zeros_in_training(
    make_adapted, ids, config
) -> None:
    model = make_adapted(missing_routing="uniform", **config)
    gates = {n: p for n, p in model.named_parameters() if "ilora_gate" in n}
    assert gates
    expected = model(input_ids=ids).logits
    trained = model.train()(input_ids=ids).logits
    torch.testing.assert_close(trained, expected)
    trained.sum().backward()
    for parameter in gates.values():  # DDP waits for one
        assert parameter.grad is not None and not parameter.grad.any()


@pytest.mark.parametrize("token", [False, True], ids=["routing", "token"])
def test_a_traced_gate_that_keeps_the_largest_serves_other_batches(
    make_adapted, ids, z, token
) -> None:
    by_token = {"gate_input": "token", "gate_scope": "per_module"} if token else {}
    model = make_adapted(top_k=2, **by_token)

    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, z: Tensor) -> Tensor:
            routing = {} if token else {"routing_embeds": z}
            mask = torch.ones_like(ids)
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False, **routing).logits

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: sizes are constants
        traced = torch.jit.trace(Served(), (ids, z), check_trace=False)
        for inputs in ((ids, z.flip(0)), (torch.cat([ids, ids[:2]]), torch.randn(5, 8))):
            torch.testing.assert_close(traced(*inputs), Served()(*inputs))


def test_gate_weights_are_a_distribution_for_each_row(llama, make_adapted, z) -> None:
    weights = llama.gate_weights(z)
    gate = llama.base_model.ilora_gate["default"].project.weight
    torch.testing.assert_close(weights, torch.softmax(z @ gate.T, dim=1))
    per_module = make_adapted(gate_scope="per_module").gate_weights(z)
    assert len(per_module) == 2 * 4
    assert per_module["model.layers.1.self_attn.q_proj"].shape == (3, 4)
    with pytest.raises(ValueError, match="adapter_name='nobody' does not exist"):
        llama.gate_weights(z, adapter_name="nobody")


def test_flattened_inputs_follow_their_row_and_foreign_ones_are_refused(z) -> None:
    class Flattens(nn.Module):
        """OPT's habit: the batch and the sequence become one dimension."""

        def __init__(self, extra: int) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.extra = extra

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            flat = input_ids.flatten(0, 1)
            return self.fc(torch.cat([flat, flat[: self.extra]]))[: len(flat)].view(input_ids.shape)

    x = torch.randn(3, 5, 4)
    config = ILoRAConfig(routing_dim=8, target_modules=["fc"])
    model = get_peft_model(Flattens(0), config)
    nn.init.normal_(model.base_model.model.fc.lora_B["default"].weight)
    together = model(x, routing_embeds=z)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(model(x[one], routing_embeds=z[one]), together[one])
    gathers = get_peft_model(Flattens(3), config)
    with pytest.raises(ValueError, match=r"fc got an input of shape \(18, 4\).*exclude_modules"):
        gathers(x, routing_embeds=z)


def test_rows_that_only_happen_to_be_a_multiple_are_refused() -> None:
    from peft_ilora.routing.binding import Routing

    # Two instances, beams of three, five tokens: what a layer may see, and what it may not.
    routing, given = Routing(torch.zeros(2, 8), "generate", lengths=(5,), times=3), torch.eye(2)

    def rows(*leading: int) -> list[int] | None:
        spread = routing.spread(given, leading)
        return None if spread is None else spread.argmax(dim=1).tolist()

    assert rows(6, 5) == [0, 0, 0, 1, 1, 1]
    assert rows(30) == [0] * 15 + [1] * 15  # batch and sequence flattened
    assert rows(2, 5) is None  # a part of the rows, as many as there were instances
    assert rows(4, 5) is None  # four images of two instances
    assert rows(8) is None  # gathered tokens
    assert rows(7) is None
    guidance = Routing(torch.zeros(2, 8), "generate", times=2, copies=2)
    assert guidance.spread(given, (8, 1)).argmax(dim=1).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    alone = Routing(torch.zeros(1, 8), "generate", sole=True)
    assert alone.spread(given[:1], (7, 2)).shape == (7, 2)  # whatever there is belongs to it


def test_switching_adapters_inside_a_context_rechecks_the_width(llama, ids, z) -> None:
    llama.add_adapter("wide", ILoRAConfig(routing_dim=5, target_modules=["q_proj"]))
    with llama.routing(z):
        llama.set_adapter("wide")
        with pytest.raises(ValueError, match="adapter 'wide' was made with routing_dim=5"):
            llama(input_ids=ids)
    llama.base_model.set_adapter(["default", "wide"])
    with pytest.raises(ValueError, match="active adapters differ in routing_dim"):
        llama(input_ids=ids, routing_embeds=z)


@pytest.mark.support("Adapter lifecycle", "two threads, each with its own routing", "works")
def test_two_threads_each_see_their_own_routing(llama, ids, z) -> None:
    expected = {sign: llama(input_ids=ids, routing_embeds=sign * z).logits for sign in (1, -1)}
    barrier, wrong = threading.Barrier(2), []

    def work(sign: int) -> None:
        for _ in range(10):
            with llama.routing(sign * z):
                barrier.wait(timeout=20)
                if not torch.allclose(llama(input_ids=ids).logits, expected[sign]):
                    wrong.append(sign)

    threads = [threading.Thread(target=work, args=(sign,)) for sign in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_batch_that_is_not_the_first_tensor_is_found(randomise) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, mask: Tensor, x: Tensor) -> Tensor:
            return self.fc(mask @ x)

    config = ILoRAConfig(target_modules=["fc"], routing_dim=8)
    model = randomise(get_peft_model(Masked(), config))
    mask, x, z = torch.rand(5, 5), torch.randn(3, 5, 4), torch.randn(3, 8)
    rows = [model(mask, x[i, None], routing_embeds=z[i, None]) for i in range(3)]
    assert torch.allclose(model(mask, x, routing_embeds=z), torch.cat(rows), atol=1e-6)
    with pytest.raises(ValueError, match="routing_embeds has 2 rows but the model's input has 5"):
        model(mask, x, routing_embeds=z[:2])


def test_one_vector_is_an_input_too_without_routing() -> None:
    config = ILoRAConfig(target_modules=["0"], missing_routing="uniform")
    model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
    assert model(torch.randn(4)).shape == (3,)


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted:UserWarning")
def test_after_the_active_adapter_is_gone_layers_follow_what_peft_falls_back_on(
    make_adapted, randomise, ids, z
) -> None:
    tuner = make_adapted(task_type=None).base_model  # PeftModel itself looks for the deleted one
    tuner.delete_adapter("default")
    base = tuner(input_ids=ids).logits
    assert torch.equal(tuner(input_ids=ids, routing_embeds=z).logits, base)
    model = make_adapted(task_type=None)
    model.add_adapter("other", ILoRAConfig(routing_dim=8, target_modules=["v_proj", "up_proj"]))
    randomise(model)
    model.base_model.delete_adapter("default")
    rows = model.base_model(input_ids=ids, routing_embeds=z).logits
    assert model.base_model.active_adapters == ["other"]
    with pytest.raises(ValueError, match="routing_embeds is missing: adapter 'other'"):
        model.base_model(input_ids=ids)
    assert not torch.allclose(rows, base, atol=1e-3)


def test_weights_that_hooks_cast_around_each_layer_are_read_inside_of_it(
    make_adapted, ids, z
) -> None:
    model = make_adapted()
    expected = model(input_ids=ids, routing_embeds=z).logits
    for module in model.modules():
        if not list(module.children()) and list(module.parameters()):
            module.half()
            module.register_forward_pre_hook(lambda m, _: m.float() and None)
            module.register_forward_hook(lambda m, *_: m.half() and None)
    with disable_input_dtype_casting(model):
        got = model(input_ids=ids, routing_embeds=z).logits
    assert torch.allclose(got, expected, atol=0.02)
