"""Kinds of gates: hand-computed weights, and what each does to a model."""

import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_ilora import ILoRAConfig, export_lora
from peft_ilora.gating import Gate, make_gate

support = pytest.mark.support


def gate(logits: list[float], **fields) -> tuple[Gate, Tensor]:
    """A linear gate whose logits for the returned input are these."""
    config = ILoRAConfig(num_experts=len(logits), routing_dim=1, **fields)
    made = make_gate(config, 1)
    assert isinstance(made, Gate)
    assert isinstance(made.project, nn.Linear)
    made.project.weight.data = torch.tensor(logits).unsqueeze(1)
    return made, torch.ones(1, 1)


@support("Gates", "linear", "works")
def test_a_linear_gate_is_the_softmax_of_its_logits() -> None:
    made, z = gate([0.0, math.log(3)])
    assert torch.allclose(made(z), torch.tensor([[0.25, 0.75]]))
    assert torch.allclose(made(-z), torch.tensor([[0.75, 0.25]]))


@support("Gates", "temperature", "works")
def test_a_temperature_of_one_half_squares_the_odds() -> None:
    made, z = gate([0.0, math.log(3)], temperature=0.5)
    assert torch.allclose(made(z), torch.tensor([[0.1, 0.9]]))


@support("Gates", "top_k", "works")
def test_top_k_renormalises_the_kept_and_sends_gradients_to_them_only() -> None:
    made, z = gate([0.0, math.log(2), math.log(6), -1.0], top_k=2)
    weights = made(z)
    assert torch.allclose(weights, torch.tensor([[0.0, 0.25, 0.75, 0.0]]))
    weights[0, 2].backward()
    # d softmax_2 / d logits of the kept: -0.25 * 0.75 and 0.75 * 0.25
    expected = torch.tensor([[0.0], [-0.1875], [0.1875], [0.0]])
    assert torch.allclose(made.project.weight.grad, expected)


@support("Gates", "top_k", "works")
def test_top_1_is_one_hot() -> None:
    made, z = gate([0.0, 2.0, 1.0], top_k=1)
    assert torch.equal(made(z), torch.tensor([[0.0, 1.0, 0.0]]))


@support("Gates", "zero initialisation", "works")
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_gate_that_starts_at_zero_weighs_all_experts_alike(kind) -> None:
    made = make_gate(ILoRAConfig(gate=kind, gate_init="zeros", num_experts=4), 8)
    assert torch.equal(made(torch.randn(5, 8)), torch.full((5, 4), 0.25))
    default = make_gate(ILoRAConfig(gate=kind, num_experts=4), 8)
    assert not torch.allclose(default(torch.randn(5, 8)), torch.full((5, 4), 0.25))


@support("Gates", "noisy", "works")
def test_noise_is_added_to_the_logits_by_its_standard_deviation() -> None:
    made, z = gate([0.0, 0.0], noise_std=0.5)
    noise = torch.tensor([[0.0, 2 * math.log(3)]])
    assert torch.allclose(made(z, noise), torch.tensor([[0.25, 0.75]]))
    assert torch.equal(made(z), torch.tensor([[0.5, 0.5]]))


@support("Gates", "noisy", "works")
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_noise_acts_in_training_only_and_follows_the_seed(make_adapted, ids, z, scope) -> None:
    model = make_adapted(noise_std=2.0, gate_scope=scope)
    clean = make_adapted(gate_scope=scope)

    def logits(of: PeftModel, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        return of(input_ids=ids, routing_embeds=z).logits

    assert torch.equal(logits(model), logits(clean))
    model.train()
    assert torch.equal(logits(model, 1), logits(model, 1))
    assert not torch.allclose(logits(model, 1), logits(model, 2), atol=1e-4)


@support("Gates", "noisy", "works")
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_sees_the_noise_of_its_forward(make_adapted, ids, z, reentrant) -> None:
    grads = []
    for checkpointing in (False, True):
        model = make_adapted(noise_std=2.0, lora_dropout=0.3).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(5)
        model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        assert torch.allclose(grads[0][name], grads[1][name], atol=1e-6), name


@support("Gates", "hard clusters", "works")
def test_a_hard_gate_is_the_named_expert_alone(make_adapted, ids) -> None:
    assert torch.equal(
        make_gate(ILoRAConfig(gate="hard", num_experts=3), 1)(torch.tensor([2, 0])),
        torch.eye(3)[[2, 0]],
    )
    model = make_adapted(gate="hard")
    by_expert = torch.cat(
        [model(input_ids=ids[:1], routing_embeds=torch.tensor([k])).logits for k in range(4)]
    )
    mixed = model(input_ids=ids[:1].repeat(3, 1), routing_embeds=torch.tensor([3, 1, 3])).logits
    assert torch.allclose(mixed, by_expert[[3, 1, 3]], atol=1e-5)
    assert (by_expert[0] - by_expert[1]).abs().max() > 1e-3


@support("Gates", "hard clusters", "works")
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_a_hard_gate_trains_generates_saves_merges_and_exports(
    make_adapted, make_llama, ids, tmp_path, scope
) -> None:
    model, clusters = make_adapted(gate="hard", gate_scope=scope), torch.tensor([2, 0, 2])
    expected = model(input_ids=ids, routing_embeds=clusters).logits
    expected.sum().backward()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # columns of experts 1 and 3 were not used
            unused = parameter.grad.view(-1, 4, 4)[:, [1, 3]]
            assert not unused.any() and parameter.grad.any()
    out = model.generate(
        input_ids=ids, routing_embeds=clusters, max_new_tokens=3, do_sample=False, num_beams=2
    )
    assert out.shape[0] == 3
    model.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(make_llama(), tmp_path / "a")
    assert torch.equal(again(input_ids=ids, routing_embeds=clusters).logits, expected)
    export_lora(model, clusters[:1], tmp_path / "b")
    plain = PeftModel.from_pretrained(make_llama(), tmp_path / "b")
    assert torch.allclose(plain(input_ids=ids).logits[0], expected[0], atol=1e-5)
    merged = model.merge_and_unload(routing_embeds=clusters[1:2])
    assert torch.allclose(merged(input_ids=ids).logits[1], expected[1], atol=1e-5)


def test_expert_ids_are_checked(make_adapted, ids, z) -> None:
    model = make_adapted(gate="hard")
    with pytest.raises(TypeError, match=r"float32 but gate='hard' takes expert ids"):
        model(input_ids=ids, routing_embeds=z)
    with pytest.raises(ValueError, match=r"shape \(3, 1\); with gate='hard' pass \[batch\]"):
        model(input_ids=ids, routing_embeds=torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expert 4 in row 1, but there are 4: pass ids in 0..3"):
        model(input_ids=ids, routing_embeds=torch.tensor([0, 4, 1]))
    with pytest.raises(ValueError, match=r"expert -1 in row 0"):
        model(input_ids=ids, routing_embeds=torch.tensor([-1, 4, 1]))
    with pytest.raises(TypeError, match="is a list; pass an int64 tensor"):
        model(input_ids=ids, routing_embeds=[0, 1, 2])


@support("Gates", "unequal expert ranks", "works")
def test_unequal_ranks_own_their_share_of_the_coordinates(make_adapted, ids) -> None:
    model = make_adapted(gate="hard", num_experts=3, expert_ranks=[4, 2, 1])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.r["default"] == 7
    assert layer.scaling["default"] == pytest.approx(16 * 3 / 7)
    model(input_ids=ids, routing_embeds=torch.tensor([1, 1, 1])).logits.sum().backward()
    used = layer.lora_B["default"].weight.grad.abs().sum(dim=0) > 0
    assert used.tolist() == [False] * 4 + [True] * 2 + [False]


@support("Gates", "input: token", "works")
def test_a_token_gate_reads_each_tokens_hidden_state(randomise) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5))
    config = ILoRAConfig(
        num_experts=3,
        r=2,
        lora_alpha=4,
        gate_input="token",
        gate_scope="per_module",
        target_modules=["0"],
    )
    model = randomise(get_peft_model(base, config)).double()
    layer, x = model.base_model.model[0], torch.randn(2, 4, 6).double()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    w = torch.softmax(x @ layer.ilora_gate["default"].project.weight.T, dim=-1)
    expected = layer.base_layer(x)
    for k in range(3):
        own = slice(2 * k, 2 * k + 2)
        expected = expected + (4 / 2) * w[..., k : k + 1] * (x @ a[own].T @ b[:, own].T)
    assert torch.allclose(model(x), expected, atol=1e-10)


@support("Gates", "input: token", "works")
def test_a_token_gate_needs_no_routing_and_lives_like_any_other(
    make_adapted, make_llama, ids, z, tmp_path
) -> None:
    model = make_adapted(gate_input="token", gate_scope="per_module", top_k=2)
    logits = model(input_ids=ids).logits
    rows = torch.cat([model(input_ids=row[None]).logits for row in ids])
    assert torch.allclose(logits, rows, atol=1e-5)
    greedy = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    full = ids
    for _ in range(4):
        full = torch.cat([full, model(input_ids=full).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(greedy, full)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        PeftModel.from_pretrained(make_llama(), tmp_path)(input_ids=ids).logits, logits
    )
    with pytest.raises(ValueError, match="route tokens by their hidden state.*leave it out"):
        model(input_ids=ids, routing_embeds=z)
    with pytest.raises(ValueError, match="can be neither merged nor exported"):
        model.merge_and_unload(routing_embeds=z[:1])
    with pytest.raises(ValueError, match="only a forward knows"):
        model.gate_weights(z)


def test_a_token_gate_reaches_into_a_mixture_of_experts() -> None:
    class Moe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(0, 1)
            half = tokens.shape[0] // 2 + 1
            parts = self.experts[0](tokens[:half]), self.experts[1](tokens[half:])
            return torch.cat(parts).view(x.shape)

    config = ILoRAConfig(
        gate_input="token", gate_scope="per_module", target_modules=r"experts\.\d+"
    )
    model = get_peft_model(Moe(), config)
    assert model(torch.randn(3, 5, 4)).shape == (3, 5, 4)


@support("Gates", "input: prompt", "works")
def test_a_prompt_gate_reads_the_mean_embedding_of_attended_unlabelled_tokens(
    make_adapted, ids
) -> None:
    model = make_adapted(gate_input="prompt", routing_dim=32)
    given = make_adapted(routing_dim=32)
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[0, :2] = 0
    labels[:, :5] = -100
    table = model.get_input_embeddings().weight
    expected = torch.stack([table[ids[0, 2:5]].mean(0), *(table[r[:5]].mean(0) for r in ids[1:])])
    assert torch.allclose(
        model.prompt_embeds(ids, attention_mask=mask, labels=labels), expected, atol=1e-6
    )
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    got = model(**batch).loss
    assert torch.allclose(got, given(**batch, routing_embeds=expected).loss, atol=1e-6)
    assert not torch.allclose(got, given(**batch, routing_embeds=-expected).loss, atol=1e-6)


@support("Gates", "input: prompt", "works")
@pytest.mark.parametrize("beams", [1, 2])
def test_a_prompt_gate_holds_the_prompts_mixture_while_generating(make_adapted, ids, beams) -> None:
    model = make_adapted(gate_input="prompt", routing_dim=32)
    given = make_adapted(routing_dim=32)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams}
    routing = model.prompt_embeds(ids)
    expected = given.generate(input_ids=ids, routing_embeds=routing, **options)
    assert torch.equal(model.generate(input_ids=ids, **options), expected)
    assert torch.equal(model.generate(ids, **options), expected)
    embeds = model.get_input_embeddings()(ids)
    assert torch.allclose(model.prompt_embeds(inputs_embeds=embeds), routing)


def test_a_prompt_ends_before_the_first_labelled_token_whatever_follows(make_adapted, ids) -> None:
    model = make_adapted(gate_input="prompt", routing_dim=32).train()
    labels = torch.full_like(ids, -100)
    labels[:, 3:5] = ids[:, 3:5]  # an answer between two turns of the user
    later = ids.clone()
    later[:, 5:] = 7
    first = model.prompt_embeds(ids, labels=labels)
    assert torch.equal(first, model.prompt_embeds(ids[:, :3]))
    before = model(input_ids=ids, labels=labels).logits[:, :5]
    assert torch.equal(model(input_ids=later, labels=labels).logits[:, :5], before)


def test_a_mask_and_labels_may_be_positional(make_adapted, ids) -> None:
    model = make_adapted(gate_input="prompt", routing_dim=32, task_type=None)
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    by_name = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(model(ids, mask).logits, by_name)
    assert not torch.allclose(by_name, model(input_ids=ids).logits, atol=1e-4)


def test_labels_of_classes_do_not_end_a_prompt(randomise, ids) -> None:
    from transformers import LlamaConfig, LlamaForTokenClassification

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    base = LlamaForTokenClassification(
        LlamaConfig(vocab_size=60, num_attention_heads=2, num_labels=3, **sizes)
    )
    config = ILoRAConfig(
        gate_input="prompt", routing_dim=32, target_modules=["q_proj"], task_type="TOKEN_CLS"
    )
    model = randomise(get_peft_model(base, config)).eval()
    labelled = model(input_ids=ids, labels=ids % 3).logits
    assert torch.equal(labelled, model(input_ids=ids).logits)


def test_a_routing_adapter_never_reads_the_prompt_of_one_beside_it(make_adapted, ids) -> None:
    model = make_adapted(gate_input="prompt", routing_dim=32)
    model.add_adapter("other", ILoRAConfig(routing_dim=32, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="routing_embeds is missing"):
        model.eval()(input_ids=ids, adapter_names=["default", "other", "other"])


def test_a_half_gate_computes_in_float32() -> None:
    made = make_gate(ILoRAConfig(num_experts=3), 4).half()
    weights = made(torch.full((1, 4), 1e5))
    assert weights.dtype == torch.float32 and torch.isfinite(weights).all()


def test_a_prompt_gate_says_what_it_cannot_read(make_adapted, make_llama, ids) -> None:
    model = make_adapted(gate_input="prompt", routing_dim=32)
    with pytest.raises(ValueError, match="row 0 has no prompt token.*Mask the prompt in labels"):
        model(input_ids=ids, labels=ids)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="continues a sequence"):
        model(input_ids=ids[:, :1], past_key_values=cache)
    with model.routing(model.prompt_embeds(ids)):
        assert model(input_ids=ids[:, :1], past_key_values=cache).logits.shape[:2] == (3, 1)
    with pytest.raises(ValueError, match="has neither"):
        model.prompt_embeds()
    with pytest.raises(ValueError, match=r"width 32: ILoRAConfig\(routing_dim=32\)"):
        get_peft_model(make_llama(), ILoRAConfig(gate_input="prompt", target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has no get_input_embeddings"):
        get_peft_model(
            nn.Sequential(nn.Linear(2, 2)), ILoRAConfig(gate_input="prompt", target_modules=["0"])
        )


def test_a_model_is_copied_in_the_middle_of_training(make_adapted, ids) -> None:
    import copy

    model = make_adapted(gate_input="token", gate_scope="per_module").train()
    logits = model(input_ids=ids).logits
    again = copy.deepcopy(model)
    with pytest.raises(ValueError, match="has routed no forward yet"):
        again.routing_statistics()
    assert torch.equal(again(input_ids=ids).logits, logits)
