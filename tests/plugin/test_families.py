"""Every model family against the same definition of what routing means."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSeq2SeqLM

from peft_ilora import ILoRAConfig, export_lora

from .families import (
    FAMILIES,
    ROWS,
    SMALL,
    SMALL_ENCODER_DECODER,
    SMALL_IMAGES,
    Family,
    Inputs,
    configured,
    decode_fully,
    family,
    lively,
    packed_images,
    qwen2_vl,
    rows_of,
)

ROUTING_DIM, EXPERTS, RANK, ALPHA = 8, 3, 2, 4
NEW = 4
MODEL_FAMILIES = "Model families"


@dataclass(eq=False)
class Case:
    """A family with one choice of targets and of the gate's scope."""

    family: Family
    targets: Any
    gate_scope: str

    @property
    def settings(self) -> dict[str, Any]:
        """Of the configuration, for a LoRA of either kind."""
        task_type = self.family.task_type
        return {
            "target_modules": self.targets,
            "task_type": task_type,
            "lora_alpha": ALPHA,
            **self.family.config,
        }

    @cached_property
    def model(self) -> PeftModel:
        """Adapted, with values in B and in the gate. Tests leave it as it is."""
        config = ILoRAConfig(
            num_experts=EXPERTS,
            r=RANK,
            routing_dim=ROUTING_DIM,
            gate_scope=self.gate_scope,
            **self.settings,
        )
        model = get_peft_model(self.family.build(), config)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "ilora_gate" in name:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(values * (0.5 if "ilora_gate" in name else 0.2))
        return model.eval()

    def run(self, z: Tensor | None, inputs: Inputs | None = None, model: Any = None) -> Tensor:
        """The compared output, [rows, features]; of a plain LoRA or a base model without z."""
        routing = {} if z is None else {"routing_embeds": z}
        with torch.no_grad():
            model = self.model if model is None else model.eval()
            inputs = self.family.inputs() if inputs is None else inputs
            output = model(**inputs, **self.family.keywords, **routing)
        return self.family.look(output)


def cases() -> list:
    found = []
    for known in FAMILIES:
        for number, targets in enumerate(known.targets):
            case = Case(known, targets, "shared" if number else "per_module")
            label = "all-linear" if targets == "all-linear" else "named" if targets else "default"
            mark = pytest.mark.support(MODEL_FAMILIES, known.name, "works")
            found.append(pytest.param(case, id=f"{known.name}-{label}", marks=mark))
    return found


CASES = cases()
every_family = pytest.mark.parametrize("case", CASES)
every_generating_family = pytest.mark.parametrize(
    "case", [param for param in CASES if param.values[0].family.generates]
)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@every_family
def test_each_row_of_a_batch_is_what_it_is_alone_and_follows_its_own_routing_only(case, z) -> None:
    inputs = case.family.inputs()
    together = case.run(z)
    for row in range(ROWS):
        one = slice(row, row + 1)
        close(case.run(z[one], rows_of(inputs, one)), together[one])
    order = torch.tensor([2, 0, 1])
    close(case.run(z[order], rows_of(inputs, order)), together[order])
    changed = z.clone()
    changed[1] = -z[1]
    moved = (case.run(changed) - together).abs().amax(dim=1)
    assert moved[1] > 1e-2 and moved[0] < 2e-5 and moved[2] < 2e-5


@every_family
def test_a_uniform_gate_is_pefts_plain_lora_of_the_total_rank(case, z) -> None:
    # PEFT renames the targets of a mixture of experts unless they are named outright.
    targets = case.model.peft_config["default"].target_modules
    settings = case.settings | {"target_modules": targets}
    plain = get_peft_model(case.family.build(), LoraConfig(r=EXPERTS * RANK, **settings))
    ours = dict(case.model.named_parameters())
    adapted = [name for name in ours if "lora_A" in name or "lora_B" in name]
    theirs = {name: p for name, p in plain.named_parameters() if "lora_" in name}
    assert sorted(theirs) == sorted(adapted)
    for name, parameter in theirs.items():
        parameter.data.copy_(ours[name])
    close(case.run(torch.zeros_like(z)), case.run(None, model=plain))


@every_family
def test_gradients_reach_every_expert_and_gate(case, z) -> None:
    case.model.zero_grad()
    seed = z.clone().requires_grad_()
    inputs = {**case.family.inputs(), **case.family.keywords}
    output = case.family.look(case.model(**inputs, routing_embeds=seed))
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    (output * probe).sum().backward()
    trained = {n: p.grad for n, p in case.model.named_parameters() if p.requires_grad}
    assert any("ilora_gate" in name for name in trained)
    for name, grad in {**trained, "routing_embeds": seed.grad}.items():
        assert grad is not None and grad.isfinite().all() and grad.any(), name
    case.model.zero_grad()


@every_generating_family
def test_generation_with_a_cache_follows_each_rows_routing(case, z) -> None:
    inputs = case.family.prompt()
    options = {"max_new_tokens": NEW, "do_sample": False, **case.family.keywords}
    greedy = case.model.generate(**inputs, routing_embeds=z, **options)
    expected = decode_fully(case.model, inputs, z, NEW)
    assert torch.equal(greedy[:, -NEW:], expected[:, -NEW:])
    beams = {"num_beams": 2, **options}
    together = case.model.generate(**inputs, routing_embeds=z, **beams)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = case.model.generate(**rows_of(inputs, one), routing_embeds=z[one], **beams)
        assert torch.equal(alone, together[one])


@every_family
def test_a_saved_adapter_comes_back_with_identical_outputs(case, z, tmp_path) -> None:
    case.model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.family.build(), tmp_path)
    original = case.model.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in loaded.state_dict().items())
    close(case.run(z, model=loaded), case.run(z))


@every_family
def test_merging_or_exporting_one_instance_gives_that_instances_model(case, z, tmp_path) -> None:
    inputs, expected = rows_of(case.family.inputs(), slice(1)), case.run(z)[:1]
    export_lora(case.model, z[:1], tmp_path)
    plain = PeftModel.from_pretrained(case.family.build(), tmp_path)
    assert type(plain.base_model).__name__ == "LoraModel"
    close(case.run(None, inputs, plain), expected)
    merged = copy.deepcopy(case.model).merge_and_unload(routing_embeds=z[:1])
    assert type(merged) is type(case.model.get_base_model())
    close(case.run(None, inputs, merged), expected)


def checkpointing_cases() -> list:
    found = []
    for param in CASES:
        case = param.values[0]
        if case.gate_scope == "per_module" and case.family.name != "plain nn.Module":
            ways = (False, True) if case.family.name in ("BERT", "GPT-2", "T5") else (False,)
            for reentrant in ways:
                name = f"{case.family.name}{', reentrant' if reentrant else ''}"
                found.append(pytest.param(case, reentrant, id=name, marks=param.marks))
    return found


@pytest.mark.parametrize(("case", "reentrant"), checkpointing_cases())
def test_checkpointed_blocks_have_the_gradients_of_the_plain_backward(case, z, reentrant) -> None:
    assert case.model.get_base_model().supports_gradient_checkpointing
    plain = copy.deepcopy(case.model).train()
    model = copy.deepcopy(case.model).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inputs = {**case.family.inputs(), **case.family.keywords}
    gradients = []
    for each in (plain, model):
        torch.manual_seed(3)  # the same dropout
        output = case.family.look(each(**inputs, routing_embeds=z))
        probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
        (output * probe).sum().backward()
        gradients.append({n: p.grad for n, p in each.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        close(gradients[1][name], expected)


# -------------------------------------------------------------------- refusals


def refused(item: str, *values: Any) -> Any:
    return pytest.param(
        *values, id=item, marks=pytest.mark.support(MODEL_FAMILIES, item, "refused")
    )


def adapt(base: nn.Module, targets: Any, **config: Any) -> PeftModel:
    config = ILoRAConfig(routing_dim=ROUTING_DIM, target_modules=targets, **config)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


SEQUENCE_FIRST = "whose layers see the sequence before the batch"
READ_PAST = "reads its weight past the layer, so the adapter would do nothing"
EXPERT = "lies in a mixture of experts"


@pytest.mark.parametrize(
    ("make", "targets", "message"),
    [
        refused(
            "Switch Transformers (experts)",
            family("Switch Transformers (attention)").make,
            ["q", "wi"],
            EXPERT,
        ),
        refused(
            "Switch Transformers (all-linear)",
            family("Switch Transformers (attention)").make,
            "all-linear",
            EXPERT,
        ),
        refused(
            "Mixtral (experts)",
            family("Mixtral (attention)").make,
            ["q_proj", "experts"],
            EXPERT,
        ),
        refused("Mamba (x_proj)", family("Mamba").make, ["in_proj", "x_proj"], READ_PAST),
        refused("Mamba (dt_proj)", family("Mamba").make, ["dt_proj"], READ_PAST),
        refused("Mamba (all-linear)", family("Mamba").make, "all-linear", READ_PAST),
        refused("Mamba-2 (out_proj)", family("Mamba-2").make, "all-linear", "incompatible|past"),
        refused("Jamba (dt_proj)", family("Jamba (hybrid)").make, "all-linear", READ_PAST),
        refused(
            "WavLM",
            configured(
                AutoModel,
                "wavlm",
                **{k: v for k, v in SMALL_IMAGES.items() if "size" in k or "num" in k},
                conv_dim=(8, 8),
                conv_kernel=(10, 3),
                conv_stride=(5, 2),
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
            ),
            ["q_proj", "v_proj"],
            READ_PAST,
        ),
        refused(
            "SigLIP (pooling head)",
            configured(AutoModel, "siglip_vision_model", **SMALL_IMAGES),
            "all-linear",
            "lies in a torch MultiheadAttention",
        ),
        refused(
            "Longformer",
            configured(AutoModel, "longformer", attention_window=4, **SMALL),
            ["query", "value"],
            SEQUENCE_FIRST,
        ),
        refused(
            "LED",
            configured(AutoModelForSeq2SeqLM, "led", attention_window=4, **SMALL_ENCODER_DECODER),
            ["query", "value"],
            SEQUENCE_FIRST,
        ),
        refused(
            "XLNet",
            configured(AutoModel, "xlnet", d_model=16, n_layer=1, n_head=2, d_inner=16),
            ["layer_1"],
            SEQUENCE_FIRST,
        ),
        refused(
            "FSMT",
            configured(
                AutoModelForSeq2SeqLM,
                "fsmt",
                langs=["en", "de"],
                src_vocab_size=60,
                tgt_vocab_size=60,
                **SMALL_ENCODER_DECODER,
            ),
            ["q_proj", "v_proj"],
            SEQUENCE_FIRST,
        ),
    ],
)
def test_a_target_that_no_row_of_a_batch_reaches_is_refused_and_the_model_left_alone(
    make, targets, message
) -> None:
    base = lively(make)
    before = list(base.state_dict())
    with pytest.raises(ValueError, match=message):
        adapt(base, targets)
    assert list(base.state_dict()) == before


@pytest.mark.support(MODEL_FAMILIES, "Mixtral (experts)", "refused")
def test_the_stacked_experts_of_a_mixture_are_refused_by_parameter() -> None:
    with pytest.raises(ValueError, match="target_parameters=.* not a bare parameter"):
        ILoRAConfig(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])


@pytest.mark.support(MODEL_FAMILIES, "Switch Transformers (attention)", "works")
def test_all_linear_layers_but_the_experts_are_adapted_as_the_refusal_advises(z) -> None:
    switch = family("Switch Transformers (attention)")
    model = adapt(switch.build(), "all-linear", exclude_modules=r".*\.experts\..*")
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert any("mlp.wi" in name for name in adapted)
    assert not any("experts" in name for name in adapted)
    one, inputs = slice(1, 2), switch.inputs()
    together = model(**inputs, routing_embeds=z).logits
    close(model(**rows_of(inputs, one), routing_embeds=z[one]).logits, together[one])


DEEPSEEK = "DeepSeek-V3 (attention)"


@pytest.mark.support(MODEL_FAMILIES, "DeepSeek-V3 (dense MLP and shared experts)", "works")
def test_dense_layers_and_shared_experts_of_a_mixture_are_routed(z) -> None:
    model = adapt(family(DEEPSEEK).build(), ["gate_proj", "up_proj", "down_proj"])
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert any("shared_experts" in name for name in adapted)
    inputs = family(DEEPSEEK).inputs()
    together = model(**inputs, routing_embeds=z).logits
    for row in range(ROWS):
        one = slice(row, row + 1)
        close(model(**rows_of(inputs, one), routing_embeds=z[one]).logits, together[one])
    assert (model(**inputs, routing_embeds=-z).logits - together).abs().amax() > 1e-2


@pytest.mark.support(MODEL_FAMILIES, "Swin (windowed attention)", "refused")
def test_windows_of_an_image_are_no_rows(z) -> None:
    swin = family("Swin (MLP)")
    model = adapt(swin.build(), r".*\.(query|q_proj)")
    with pytest.raises(ValueError, match=r"got an input of shape \(12, 4, 8\).*exclude_modules"):
        model(**swin.inputs(), routing_embeds=z)


DEBERTA_3 = {
    "relative_attention": True,
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
}


@pytest.mark.parametrize(
    ("targets", "works"),
    [
        pytest.param(
            ["value_proj"],
            True,
            marks=pytest.mark.support(MODEL_FAMILIES, "DeBERTa-v3 (value_proj)", "works"),
        ),
        pytest.param(
            ["query_proj"],
            False,
            marks=pytest.mark.support(
                MODEL_FAMILIES, "DeBERTa-v3 (query_proj and key_proj)", "refused"
            ),
        ),
    ],
)
def test_a_layer_that_also_projects_positions_shared_by_all_rows_is_refused(
    targets, works, z
) -> None:
    deberta = family("DeBERTa-v2")
    model = adapt(lively(configured(AutoModel, "deberta-v2", **SMALL, **DEBERTA_3)), targets)
    inputs = deberta.inputs()
    if not works:
        with pytest.raises(ValueError, match=r"query_proj got an input of shape \(1, .*"):
            model(**inputs, routing_embeds=z)
        return
    together = model(**inputs, routing_embeds=z).last_hidden_state
    one = slice(1, 2)
    alone = model(**rows_of(inputs, one), routing_embeds=z[one]).last_hidden_state
    close(alone, together[one])


@pytest.mark.support(MODEL_FAMILIES, "Qwen2-VL (language model)", "works")
def test_images_packed_over_rows_leave_the_language_model_routable(z) -> None:
    model = adapt(lively(qwen2_vl), r".*language_model.*(q_proj|v_proj|down_proj)")
    together = model(**packed_images([1, 1, 1], 8), routing_embeds=z).logits
    first = packed_images([1, 1, 1], 8)
    alone = {
        "input_ids": first["input_ids"][:1],
        "mm_token_type_ids": first["mm_token_type_ids"][:1],
        "pixel_values": first["pixel_values"][:16],
        "image_grid_thw": first["image_grid_thw"][:1],
    }
    close(model(**alone, routing_embeds=z[:1]).logits, together[:1])
