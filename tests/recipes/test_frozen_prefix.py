import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_ilora import ILoRAConfig
from recipes.artifacts import read_json
from recipes.llm import kept_states as keeping
from recipes.llm.adapted import PromptInputs
from recipes.llm.frozen_prefix import (
    check_frozen_prefix,
    decoder_layers,
    prefix_states,
    without_layers,
)
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.kept_states import SHARD, StatesCollator, kept_states
from recipes.llm.slot_entry import slots_filled_at
from recipes.prompting.collator import TrainingCollator
from recipes.prompting.encoding import NO_SLOT, USER, encode_answers, encode_prompts
from recipes.prompting.projector import new_projector
from recipes.scoring.rank import answer_log_probs

from .language_models import SMALL, tiny_model
from .tiny_runs import Runs, refused
from .tokenizers_of_all_kinds import byte_level

TITLES = ["Heat", "Toy Story", "Fargo", "Alien", "Seven of Nine"]
WIDTH, FIRST, ROWS = 4, 2, 2 * SHARD + 5
LAYERS = {**SMALL, "num_hidden_layers": 4}
PEFT = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "ilora": ILoRAConfig(
        num_experts=2,
        r=2,
        routing_dim=WIDTH,
        target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(TITLES)


@pytest.fixture
def model(tokenizer):
    return tiny_model("llama", len(tokenizer), **LAYERS)


@pytest.fixture(scope="module")
def collator(tokenizer):
    random = np.random.default_rng(0)
    items = random.permuted(np.tile(np.arange(5), (ROWS, 1)), axis=1)
    histories = items[:, :2].copy()
    histories[::3, 0] = -1
    return TrainingCollator(
        prompts=encode_prompts(tokenizer, TITLES, histories, items[:, 2:], user_slot=True),
        answers=encode_answers(tokenizer, TITLES),
        rows=np.arange(ROWS),
        targets=items[:, 3],
        pad_id=3,
        users=torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)),
    )


def hybrid_of(model, name, dtype):
    """The model with an adapter in its last layers that changes something, and its projector."""
    peft = copy.deepcopy(PEFT[name])
    peft.layers_to_transform, peft.init_lora_weights = [2, 3], False
    torch.manual_seed(0)
    adapted = get_peft_model(model, peft)
    items = torch.randn(5, WIDTH)
    projector = new_projector(items, torch.randn(9, 16), seed=0)
    routed_by = "vector" if name == "ilora" else None
    return HybridModel(adapted, projector, items, routed_by, FIRST).to(dtype)


def loss_and_gradients(hybrid, batch, **more):
    hybrid.zero_grad()
    loss = hybrid(**batch, **more)["loss"]
    loss.backward()
    gradients = {n: p.grad for n, p in hybrid.named_parameters() if p.requires_grad}
    return loss.detach(), gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hybrid", [True, False])
@pytest.mark.parametrize("name", list(PEFT))
def test_training_on_kept_states_is_training_on_the_whole_model(
    name, hybrid, dtype, model, collator, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(torch, "get_default_dtype", lambda: dtype)
    kept = kept_states(model.to(dtype), FIRST, collator, tmp_path)
    whole, samples = hybrid_of(model, name, dtype), [0, 40, 66, 3]
    batch = StatesCollator(collator, kept)(samples)
    users = {"users": batch["users"].to(dtype), "hybrid": hybrid}
    wanted = loss_and_gradients(whole, collator(samples) | users)
    with without_layers(decoder_layers(model), range(FIRST)):
        found = loss_and_gradients(whole, batch | users)
    close = {torch.float64: 1e-9, torch.float32: 2e-4}[dtype]
    torch.testing.assert_close(found[0], wanted[0], rtol=close, atol=close)
    assert found[1].keys() == wanted[1].keys()
    for key, gradient in wanted[1].items():
        if gradient is None:
            assert "projector" in key and not hybrid and found[1][key] is None
            continue
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[1][key], gradient, rtol=close, atol=close)


def test_a_slot_is_filled_at_the_layer_and_nowhere_else(model, collator) -> None:
    """The naive reference: the states below, with the vector written into them by hand."""
    hybrid, batch = hybrid_of(model, "lora", torch.float32).eval(), collator([1, 2])
    ids, mask, slots = (batch[n] for n in ("input_ids", "attention_mask", "slot_items"))
    layers = decoder_layers(model)
    with torch.no_grad():
        states = prefix_states(model, FIRST, ids, mask).clone()
        for row, column in (slots != -1).nonzero().tolist():
            item = int(slots[row, column])
            vector = batch["users"][row] if item == -2 else hybrid.items[item]
            states[row, column] = hybrid.projector(vector)
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with without_layers(layers, range(FIRST)):
            wanted = hybrid.llm(inputs_embeds=states, attention_mask=mask, position_ids=places)
        with hybrid.filling(slots, batch["users"]):
            found = hybrid.llm(input_ids=ids, attention_mask=mask, position_ids=places)
    torch.testing.assert_close(found.logits[:, -8:], wanted.logits[:, -8:])


@pytest.mark.parametrize("cached", [True, False])
def test_ranking_fills_the_slots_of_prompts_once(cached, model, collator, monkeypatch) -> None:
    """With a shared cache and without, as whole sequences give it."""
    hybrid, batch = hybrid_of(model, "lora", torch.float32).eval(), collator([1, 2])
    ids, mask, slots = (batch[n] for n in ("input_ids", "attention_mask", "slot_items"))
    answers = [[[5, 6, 2], [7, 2]], [[8, 2], [9, 10, 11, 2]]]
    if not cached:
        monkeypatch.setattr("recipes.scoring.rank.repeatable_cache", lambda outputs: None)
    with torch.no_grad():
        embeds = hybrid.embed(ids, slots, batch["users"], hybrid=True)
        with hybrid.filling(slots, batch["users"]):
            found = answer_log_probs(hybrid.llm, PromptInputs(embeds, mask, None), answers)
        for row, choices in enumerate(answers):
            own = mask[row].bool()
            for choice, answer in enumerate(choices):
                whole = torch.cat([ids[row][own], torch.tensor(answer)])[None]
                with hybrid.filling(slots[row][own][None], batch["users"][row][None]):
                    scores = hybrid.llm(input_ids=whole).logits[0].log_softmax(dim=-1)
                start = int(own.sum()) - 1
                wanted = sum(scores[start + k, token] for k, token in enumerate(answer))
                torch.testing.assert_close(found[row, choice], wanted, rtol=1e-4, atol=1e-4)


LFM2 = {**LAYERS, "full_attn_idxs": [1, 3]}


@pytest.mark.parametrize(("family", "sizes"), [("llama", LAYERS), ("lfm2", LFM2)])
@torch.no_grad()
def test_generating_fills_the_slots_of_prompts_alone(family, sizes, tokenizer) -> None:
    """Layers with a state of fixed size do not tell how many tokens they have seen."""
    model = tiny_model(family, len(tokenizer), pad_token_id=3, **sizes)
    ids = torch.arange(4, 22).view(2, 9)
    slots = torch.full_like(ids, NO_SLOT)
    slots[:, 7] = USER
    seen = []

    def fill(states, slots, repeats):
        seen.append(states.shape[1])
        return states.where((slots != USER).unsqueeze(-1), 1.0)

    def logits(cached):
        options = {"use_cache": cached, "output_logits": True, "return_dict_in_generate": True}
        made = model.generate(ids, max_new_tokens=4, min_new_tokens=4, **options)
        return torch.stack(made.logits)

    with slots_filled_at(decoder_layers(model), FIRST, slots, fill):
        found = logits(True), logits(False)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert seen == [9, 9, 10, 11, 12]
    assert (found[0] - logits(True)).abs().max() > 1e-2


def test_layers_that_were_left_out_come_back(model) -> None:
    before = list(decoder_layers(model))
    with pytest.raises(RuntimeError), without_layers(decoder_layers(model), range(3)):
        raise RuntimeError
    assert [*decoder_layers(model)] == before


GPT2 = {"n_layer": 4, "n_embd": 16, "n_head": 2, "n_positions": 64}


BLOOM = {"n_layer": 4, "hidden_size": 16, "n_head": 2}


@pytest.mark.parametrize(
    ("family", "sizes", "said"),
    [
        ("llama", LAYERS, None),
        ("gemma2", {**LAYERS, "head_dim": 8, "sliding_window": 3}, None),
        ("gpt2", GPT2, "gives other scores when its layers from 2 on read"),
        ("bloom", BLOOM, r"cannot run without its layers below 2 \(IndexError: too many indices"),
    ],
)
def test_a_model_that_cannot_go_on_from_states_is_refused(family, sizes, said, tokenizer) -> None:
    """GPT-2 adds positions to whatever it is given as embeddings; Bloom's layers give tuples."""
    model = tiny_model(family, len(tokenizer), **sizes)
    before = list(decoder_layers(model))
    with (
        pytest.raises(ValueError, match=f"adapt.llm='folder': .*{said}") if said else nullcontext()
    ):
        check_frozen_prefix(model, FIRST, "folder")
    assert [*decoder_layers(model)] == before


# ------------------------------------------------------------------ kept on disk


def counted(monkeypatch):
    """The numbers of samples in each forward pass from now on."""
    seen, real = [], keeping.prefix_states

    def prefix_states(model, first, ids, mask):
        seen.append(len(ids))
        return real(model, first, ids, mask)

    monkeypatch.setattr(keeping, "prefix_states", prefix_states)
    return seen


def test_states_are_computed_once_and_a_damaged_or_missing_shard_again(
    model, collator, tmp_path, monkeypatch
) -> None:
    seen = counted(monkeypatch)
    kept = kept_states(model, FIRST, collator, tmp_path)
    assert sum(seen) == ROWS and len(kept.shards) == 3
    wanted = {path: path.read_bytes() for path in kept.shards}
    kept.shards[0].unlink()
    kept.shards[2].write_bytes(wanted[kept.shards[2]][:-1] + b"!")
    again = kept_states(model, FIRST, collator, tmp_path)
    assert sum(seen) == ROWS + SHARD + 5
    assert {path: path.read_bytes() for path in again.shards} == wanted
    kept_states(model, FIRST, collator, tmp_path)
    assert sum(seen) == ROWS + SHARD + 5
    for sample in (0, SHARD - 1, SHARD, ROWS - 1):
        batch = collator([sample])
        states = prefix_states(model, FIRST, batch["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(kept.of(sample), states[0])


def test_an_interrupted_computation_goes_on(model, collator, tmp_path, monkeypatch) -> None:
    whole = kept_states(model, FIRST, collator, tmp_path / "whole")
    real, calls = keeping.prefix_states, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(keeping, "prefix_states", killed)
        kept_states(model, FIRST, collator, tmp_path / "killed")
    assert len([*(tmp_path / "killed").rglob("*.safetensors")]) == 1
    resumed = kept_states(model, FIRST, collator, tmp_path / "killed")
    assert [one.read_bytes() for one in resumed.shards] == [
        one.read_bytes() for one in whole.shards
    ]


def test_other_samples_and_layers_are_kept_elsewhere(model, collator, tmp_path) -> None:
    kept_states(model, FIRST, collator, tmp_path)
    kept_states(model, 1, collator, tmp_path)
    fewer = copy.copy(collator)
    object.__setattr__(fewer, "rows", collator.rows[1:])
    object.__setattr__(fewer, "targets", collator.targets[1:])
    kept_states(model, FIRST, fewer, tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_a_disk_without_room_is_told_before_anything_is_computed(
    model, collator, tmp_path, monkeypatch
) -> None:
    usage = keeping.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"has 0.0 GB left: lower adapt.train_windows"):
        kept_states(model, FIRST, collator, tmp_path)
    assert not [*tmp_path.iterdir()]


# ------------------------------------------------------------------ in a run

FIELDS = ["--adapt.last_layers", 1, "--adapt.frozen_prefix", "true"]
FROZEN = [*FIELDS, "--adapt.redraw_candidates", "false"]


def test_a_run_trains_on_kept_states_and_adapts_the_last_layers_alone(tmp_path) -> None:
    runs = Runs(tmp_path)
    methods = ["--adapt.methods", "[lora, lora-user-slot, ilora]"]
    few = ["--adapt.train_windows", 9, "--adapt.item_slots", "false"]
    sizes = ["--adapt.stand_in.num_layers", 2, "--evaluate.max_new_tokens", 90]
    assert runs("run", *methods, *few, *sizes, *FROZEN) == 0
    # One for the prompts of lora and ilora, and one for those with a user slot.
    assert len([*(runs.folder / "states").glob("*/*/00000.safetensors")]) == 2
    for arm in ("lora", "lora-user-slot", "ilora"):
        folder = runs.folder / "adapt" / f"{arm}-seed0"
        config = read_json(folder / "adapter" / "adapter_config.json")
        assert config["layers_to_transform"] == [1]
        count = read_json(folder / "parameters.json")["projector"]
        assert (count > 0) == (arm == "lora-user-slot")
    results = runs.results
    assert runs("run", *methods, *few, *sizes, *FROZEN) == 0 and runs.results == results


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (FIELDS, "adapt.redraw_candidates=true makes other prompts in every epoch: set it false"),
        (["--adapt.frozen_prefix", "true"], "below the first adapted layer: set adapt.last_layers"),
        (["--adapt.last_layers", 9], "adapt.last_layers=9 of arm ilora: LlamaForCausalLM has 1 la"),
        (
            [*FROZEN, "--arms", "[{method: ilora, gate_input: prompt}]"],
            "gate_input='prompt' reads the token embeddings that they replace: choose another",
        ),
        (
            [*FROZEN, "--arms", "[{method: lora, bias: all}]"],
            "which bias='all' would change: leave it out, or set adapt.frozen_prefix false",
        ),
        (
            [*FROZEN, "--arms", "[{method: lora, layers_to_transform: [0]}]"],
            "adapt.last_layers=1 and layers_to_transform=[0] both choose layers: give one of them",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_before_training(fields, said, tmp_path, capsys) -> None:
    runs = Runs(tmp_path)
    assert runs("run", *fields) == 2
    assert said in refused(capsys.readouterr().err)
    assert not (runs.folder / "recommenders").exists()
