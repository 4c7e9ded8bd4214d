"""What cannot work is refused before anything is trained, with the field to change."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from recipes.data.redraw import redrawn
from recipes.data.tables import PreparedData
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
    SyntheticConfig,
)
from recipes.llm import training
from recipes.llm.loading import load_language_model, load_outline
from recipes.llm.preflight import position_limit
from recipes.llm.stand_in_tokenizer import new_tokenizer
from recipes.pipeline import Pipeline
from recipes.prompting.encoding import encode_answers, encode_prompts
from recipes.scoring.rows import evaluated_rows

from .language_models import SMALL, saved, tiny_model

LLAMA = {**SMALL, "num_key_value_heads": 2}
TARGETS = ["q_proj", "v_proj"]
STAND_IN = StandInConfig(
    hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_steps=2, batch_size=4
)


def experiment(out: Path, llm: object = "stand-in", **changes) -> Experiment:
    adapt = AdaptConfig(
        llm=str(llm),
        methods=["lora"],
        prompt_history=1,
        max_steps=2,
        batch_size=4,
        rank=4,
        target_modules=TARGETS,
        stand_in=STAND_IN,
    )
    evaluate = EvaluateConfig(rows="last", ks=[1, 5], bootstrap_samples=100)
    fields = {name[6:]: changes.pop(name) for name in list(changes) if name.startswith("adapt_")}
    tested = {n[9:]: changes.pop(n) for n in list(changes) if n.startswith("evaluate_")}
    return Experiment(
        out=str(out),
        prepare=PrepareConfig(
            protocol="chronological", num_candidates=5, synthetic=SyntheticConfig(num_users=40)
        ),
        recommender=RecommenderConfig(hidden_size=8, num_layers=1, max_epochs=1),
        adapt=replace(adapt, **fields),
        evaluate=replace(evaluate, **tested),
        **changes,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Pipeline:
    """A run whose stage `prepare` is finished."""
    made = Pipeline.of(experiment(tmp_path_factory.mktemp("prepared")))
    made.prepare()
    return made


@pytest.fixture(scope="module")
def tokenizer(prepared) -> PreTrainedTokenizerFast:
    return new_tokenizer(prepared.run.data.titles, 400)


@pytest.fixture
def out(prepared, tmp_path) -> Path:
    """The folder of a run that is prepared, and no more."""
    return shutil.copytree(prepared.run.folder, tmp_path / "run")


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer) -> Path:
    """A model that everything works with."""
    return saved(tmp_path_factory.mktemp("llama"), "llama", tokenizer, **LLAMA)


def refusal(out: Path, llm: object = "stand-in", **changes) -> str:
    """What is said; nothing but the first stage has been made."""
    made = Pipeline.of(experiment(out, llm, **changes))
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        made.run_all()
    assert not (out / "recommenders").exists() and not (out / "adapt").exists()
    return str(refused.value)


def test_a_model_that_fits_is_trained_and_evaluated(out, llama):
    results = Pipeline.of(experiment(out, llama, adapt_methods=["lora", "ilora"])).run_all()
    assert results["evaluated"]["ambiguous_rows"] == 0


# ------------------------------------------------------------------ modules and options


@pytest.mark.parametrize("llm", ["llama", "stand-in"])
def test_a_misspelt_module_is_refused_with_the_names_that_there_are(out, llama, llm):
    chosen = llama if llm == "llama" else llm
    said = refusal(out, chosen, adapt_target_modules=["q_proj", "v_prj"])
    assert "adapt.target_modules of arm lora names v_prj, which LlamaForCausalLM does not" in said
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in said


OTHER_NAMES = {
    "opt": (
        {"ffn_dim": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1, "hidden_size": 16}
        | {"num_attention_heads": 2},
        "down_proj, gate_proj, o_proj, up_proj",
        "fc1, fc2, k_proj, out_proj, q_proj, v_proj",
    ),
    "gpt2": (
        {"n_embd": 16, "n_layer": 1, "n_head": 2},
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        "c_attn, c_fc, c_proj",
    ),
    "falcon": (
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        "dense, dense_4h_to_h, dense_h_to_4h, query_key_value",
    ),
}


@pytest.mark.parametrize("family", list(OTHER_NAMES))
def test_the_default_list_is_refused_where_a_family_names_its_modules_otherwise(
    out, tmp_path, tokenizer, family
):
    settings, missing, there = OTHER_NAMES[family]
    llm = saved(tmp_path / family, family, tokenizer, **settings)
    said = refusal(out, llm, adapt_target_modules=AdaptConfig().target_modules)
    assert f"names {missing}, which" in said and there in said


def test_a_family_that_peft_cannot_run_from_embeddings_is_refused(out, tmp_path, tokenizer):
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 1024}
    llm = saved(tmp_path / "mpt", "mpt", tokenizer, **sizes)
    said = refusal(out, llm, adapt_target_modules=["Wqkv"])
    assert "MptForCausalLM cannot be used with an adapter (AssertionError: forward in MPT" in said
    assert said.endswith("choose another adapt.llm")


def test_a_prefix_that_a_layer_cannot_read_is_refused_before_training(out, tmp_path, tokenizer):
    sizes = {**LLAMA, "layer_types": ["conv", "full_attention"]}
    llm = saved(tmp_path / "lfm2", "lfm2", tokenizer, **sizes)
    said = refusal(out, llm, adapt_methods=["deep-prompt"], adapt_target_modules=["q_proj"])
    assert "Lfm2ForCausalLM cannot be given a prefix of keys and values" in said


UNFIT = {
    "a module to save": ({"modules_to_save": ["nope"]}, "modules_to_save of arm a names nope"),
    "a module to leave out": ({"exclude_modules": ["nope"]}, "exclude_modules of arm a names"),
    "a pattern of ranks": ({"rank_pattern": {"nope": 2}}, "rank_pattern of arm a names nope"),
    "a pattern of alphas": ({"alpha_pattern": {"nope": 2}}, "alpha_pattern of arm a names nope"),
    "a layer": ({"layers_to_transform": [0, 9]}, "the model has the layers 0 to 0"),
    "a token": ({"trainable_token_indices": [5, 90000]}, "the model has the tokens 0 to"),
    "all modules left out": ({"exclude_modules": TARGETS}, "PEFT cannot wrap 'stand-in'"),
    "a pattern of layers": (
        {"layers_to_transform": [0], "layers_pattern": "nope"},
        "PEFT cannot wrap 'stand-in' with these options",
    ),
    "a norm": ({"target_modules": ["norm"]}, "PEFT cannot wrap 'stand-in' with these options"),
}


@pytest.mark.parametrize("kind", list(UNFIT))
def test_an_option_that_does_not_fit_the_model_is_refused(out, kind):
    options, message = UNFIT[kind]
    arms = [{"method": "lora", "name": "a", **options}]
    assert message in refusal(out, arms=arms)


IMPOSSIBLE = {
    "rslora": ({"use_rslora": "yes"}, "method lora: use_rslora='yes' must be true or false"),
    "dora": ({"use_dora": "yes"}, "use_dora='yes' must be true or false"),
    "fan in": ({"fan_in_fan_out": 1}, "fan_in_fan_out=1 must be true or false"),
    "eva": ({"eva_config": {}}, "eva_config={} cannot be used: leave it out"),
    "arrow": ({"arrow_config": {}}, "arrow_config={} cannot be used: leave it out"),
    "corda": ({"corda_config": {"verbose": True}}, "corda_config cannot be used (it prepares"),
    "alora": ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens cannot be used (it"),
    "layers twice": ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication cannot be used"),
    "monteclora": ({"monteclora_config": {}}, "monteclora_config={} cannot be used"),
    "kasa": ({"kasa_config": "x"}, "method lora: `KasaConfig` must be a"),
    "start nonsense": ({"init_lora_weights": "nonsense"}, "init_lora_weights='nonsense' must be"),
    "start 1": ({"init_lora_weights": 1}, "must be one of true, false, gaussian, orthogonal, pis"),
    "start none": ({"init_lora_weights": None}, "init_lora_weights=None must be one of"),
    "start eva": ({"init_lora_weights": "eva"}, "init_lora_weights='eva' must be one of"),
    "start corda": ({"init_lora_weights": "corda"}, "init_lora_weights='corda' must be one of"),
    "start loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' must be one of"),
    "start drawn": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' must be one of"),
    "rank pattern": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern['q_proj']=0 must be positive"),
    "alpha pattern": ({"alpha_pattern": {"q_proj": "x"}}, "['q_proj']='x' must be positive"),
    "save": ({"modules_to_save": "lm_head"}, "modules_to_save='lm_head' must be a list of names"),
    "layers": ({"layers_to_transform": "all"}, "layers_to_transform='all' must be numbers of"),
}


@pytest.mark.parametrize("kind", list(IMPOSSIBLE))
def test_an_impossible_option_is_refused_before_anything_is_done(tmp_path, kind):
    options, message = IMPOSSIBLE[kind]
    with pytest.raises(ValueError) as refused:
        Pipeline.of(experiment(tmp_path / "run", arms=[{"method": "lora", **options}]))
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ positions and lengths


@pytest.fixture(scope="module")
def longest(prepared, tokenizer) -> int:
    """Tokens of the longest prompt and answer, of training or evaluation."""
    data = prepared.run.data
    answer = int(encode_answers(tokenizer, data.titles).lengths.max())
    test = data.split("test")
    rows = evaluated_rows(data, prepared.run.experiment.evaluate).rows
    train = (data.split("train").history_lengths >= 3).nonzero()[0]
    prompts = [
        encode_prompts(tokenizer, data.titles, split.histories[rows, -1:], split.candidates[rows])
        for split, rows in ((data.split("train"), train), (test, rows))
    ]
    return answer + max(int(one.input_ids.lengths.max()) for one in prompts)


def gpt2(folder: Path, tokenizer, positions: int) -> Path:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    return saved(folder, "gpt2", tokenizer, n_positions=positions, **sizes)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_positions_that_just_suffice_do_suffice(out, tmp_path, tokenizer, longest):
    llm = gpt2(tmp_path / "gpt2", tokenizer, longest)
    Pipeline.of(experiment(out, llm, adapt_target_modules=["c_attn"])).run_all()
    assert (out / "results.json").exists()


def test_one_position_too_few_is_refused_with_both_numbers(out, tmp_path, tokenizer, longest):
    llm = gpt2(tmp_path / "gpt2", tokenizer, longest - 1)
    said = refusal(out, llm, adapt_target_modules=["c_attn"])
    assert f"take {longest} tokens" in said and f"has {longest - 1} positions" in said
    assert "lower adapt.prompt_history=1, prepare.num_candidates=5" in said


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_positions_that_run_out_in_a_later_epoch_are_refused(out, tmp_path, tokenizer, longest):
    """Its candidates are drawn anew, so that a longest prompt of its own may come up."""
    data = PreparedData.load(out / "prepare")
    split = data.split("train")
    rows = (split.history_lengths >= 3).nonzero()[0]
    answer = int(encode_answers(tokenizer, data.titles).lengths.max())
    shown = split.histories[rows, -1:]
    lengths = [
        answer + int(encode_prompts(tokenizer, data.titles, shown, drawn).input_ids.lengths.max())
        for drawn in (redrawn(data, data.folder, epoch)[rows] for epoch in range(1, 6))
    ]
    epoch = next(number for number, length in enumerate(lengths, 1) if length > longest)
    llm = gpt2(tmp_path / "gpt2", tokenizer, longest)
    options = {"adapt_target_modules": ["c_attn"], "adapt_batch_size": len(rows)}
    said = refusal(out, llm, **options, adapt_max_steps=epoch + 1)
    assert f"(train split, epoch {epoch + 1}: {lengths[epoch - 1] - answer} + {answer})" in said
    made = Pipeline.of(experiment(out, llm, **options, adapt_max_steps=epoch))
    made.check(set())
    frozen = {"adapt_redraw_candidates": False, "adapt_max_steps": epoch + 1}
    Pipeline.of(experiment(out, llm, **options, **frozen)).check(set())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_positions_that_run_out_in_generation_are_refused(out, tmp_path, tokenizer, longest):
    llm = gpt2(tmp_path / "gpt2", tokenizer, longest)
    options = {"adapt_target_modules": ["c_attn"], "evaluate_max_new_tokens": 24}
    said = refusal(out, llm, **options)
    assert "(test split: " in said and f"has {longest} positions" in said
    assert "evaluate.max_new_tokens=24" in said


LIMITS = {
    "as configured": ("llama", {"max_position_embeddings": 64}, 64),
    "rotary positions, scaled linearly": (
        "llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        },
        256,
    ),
    "yarn, extended already": (
        "qwen2",
        {
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 2.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            },
        },
        128,
    ),
    "a sliding window": ("mistral", {"max_position_embeddings": 64, "sliding_window": 8}, 64),
    "GPT-2's name": ("gpt2", {"n_positions": 48}, 48),
    "no limit (ALiBi)": ("bloom", {"hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    "no limit (recurrent)": ("mamba", {"hidden_size": 16, "num_hidden_layers": 1}, None),
}


@pytest.mark.parametrize("kind", list(LIMITS))
def test_the_limit_of_positions_is_read_from_the_configuration(kind):
    family, settings, limit = LIMITS[kind]
    sizes = SMALL if family in ("llama", "qwen2", "mistral") else {}
    assert position_limit(tiny_model(family, 32, **(sizes | settings))) == limit


def test_fewer_new_tokens_than_the_longest_title_has_are_refused(out, llama, tokenizer, prepared):
    titles = encode_answers(tokenizer, prepared.run.data.titles).lengths - 1
    said = refusal(out, llama, evaluate_max_new_tokens=int(titles.max()) - 1)
    assert f"evaluate.max_new_tokens={titles.max() - 1} is too small" in said
    assert f"the title of item {titles.argmax()} takes {titles.max()} tokens, so" in said
    # A beam is no answer until it has ended, and would be a miss in every row of this title.
    limits = {"evaluate_max_new_tokens": int(titles.max()), "evaluate_num_beams": 2}
    said = refusal(out, llama, **limits)
    assert f"takes {titles.max()} tokens and its end, so" in said
    assert f"Give at least {titles.max() + 1}, or" in said


def test_new_tokens_are_as_many_as_the_longest_title_has_if_nothing_else_is_asked():
    assert EvaluateConfig().max_new_tokens is None


def test_rows_that_cannot_be_evaluated_are_found_before_the_training(out):
    with pytest.raises(ValueError, match=r"evaluate\.min_history=90 leaves no row"):
        Pipeline.of(experiment(out, "stand-in", evaluate_min_history=90))
    assert not (out / "recommenders").exists()


# ------------------------------------------------------------------ tokenizers


def test_a_pad_token_outside_the_embeddings_is_replaced(out, tmp_path, tokenizer):
    llm = saved(tmp_path / "llm", "llama", tokenizer, **LLAMA)
    larger = new_tokenizer(["x"], 400)
    larger._tokenizer = tokenizer._tokenizer.from_str(tokenizer._tokenizer.to_str())
    larger.add_special_tokens({"pad_token": "[PAD]"})
    assert larger.pad_token_id >= len(tokenizer)
    larger.save_pretrained(llm)
    loaded = load_language_model(str(llm), "fp32")[1]
    assert loaded.pad_token_id == loaded.eos_token_id == 2
    Pipeline.of(experiment(out, llm)).run_all()
    assert (out / "results.json").exists()


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(out, tmp_path, prepared):
    small, large = new_tokenizer(["x"], 300), new_tokenizer(prepared.run.data.titles, 400)
    llm = saved(tmp_path / "llm", "llama", small, **LLAMA)
    large.save_pretrained(llm)
    said = refusal(out, llm)
    assert f"'{llm}': the tokenizer (400 tokens) gives the id" in said
    assert f"embeddings for {len(small)} tokens: take the tokenizer that belongs to it" in said or (
        f"embeddings for {len(small)} tokens: take the tokenizer that belongs to the model" in said
    )


def test_a_tokenizer_without_an_end_is_refused(out, llama, tmp_path):
    llm = shutil.copytree(llama, tmp_path / "llm")
    config = json.loads((llm / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (llm / "tokenizer_config.json").write_text(json.dumps(config))
    assert "has no eos token: choose another adapt.llm" in refusal(out, llm)


def test_a_slow_tokenizer_works_too(out, tmp_path):
    slow = ByT5Tokenizer(extra_ids=0)
    llm = saved(tmp_path / "llm", "llama", slow, **LLAMA)
    assert not load_outline(str(llm)).tokenizer.is_fast
    Pipeline.of(experiment(out, llm)).run_all()
    assert (out / "results.json").exists()


# ------------------------------------------------------------------ checkpoints


def _sharded(folder: Path) -> list[Path]:
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


def _changed(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def _without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _with_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _other_class(folder: Path, kind: type) -> None:
    kind(LlamaForCausalLM.from_pretrained(folder).config).save_pretrained(folder)


def _with_adapter(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)


def _encoder_decoder(folder: Path) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    sizes |= {"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    AutoModelForSeq2SeqLM.from_config(BartConfig(vocab_size=400, **sizes)).save_pretrained(folder)


def _encoder(folder: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=400, num_hidden_layers=1, **sizes)).save_pretrained(folder)


def _remote_code(folder: Path) -> None:
    own = {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}
    _changed(folder, model_type="mine", auto_map=own)


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


DAMAGED = {
    "weights cut": (lambda f: _cut(f / "model.safetensors", 900), "SafetensorError"),
    "weights empty": (lambda f: _cut(f / "model.safetensors", 0), "SafetensorError"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "shard missing": (lambda f: _sharded(f)[1].unlink(), "model-00002-of"),
    "shard cut": (lambda f: _cut(_sharded(f)[1], 100), "SafetensorError"),
    "pickle": (_as_pickle, "no file named model.safetensors"),
    "without a head": (_without_head, "lacks 1 weights of LlamaForCausalLM, such as lm_head"),
    "a model without a head": (lambda f: _other_class(f, LlamaModel), "lacks 1 weights"),
    "a classifier": (lambda f: _other_class(f, LlamaForSequenceClassification), "lacks 1 weights"),
    "more layers": (lambda f: _changed(f, num_hidden_layers=3), "lacks 9 weights"),
    "fewer layers": (lambda f: _changed(f, num_hidden_layers=1), "holds model.layers.1."),
    "other shapes": (lambda f: _changed(f, intermediate_size=24), "could not be loaded"),
    "not finite": (_with_nan, "has weights that are not finite: the checkpoint is damaged"),
    "an adapter beside it": (_with_adapter, "holds an adapter beside the model: merge it"),
    "config cut": (lambda f: _cut(f / "config.json", 30), "could not be loaded"),
    "config of nothing": (lambda f: (f / "config.json").write_text("{}"), "Unrecognized model"),
    "config missing": (lambda f: (f / "config.json").unlink(), "could not be loaded"),
    "unknown family": (lambda f: _changed(f, model_type="nonesuch"), "`nonesuch`"),
    "code of its own": (_remote_code, "contains custom code"),
    "tokenizer missing": (_no_tokenizer, "could not be loaded"),
    "tokenizer cut": (lambda f: _cut(f / "tokenizer.json", 99), "could not be loaded"),
    "tokenizer of nothing": (lambda f: (f / "tokenizer.json").write_text("{}"), "could not be"),
    "an encoder-decoder": (_encoder_decoder, "bart is an encoder-decoder, not a causal LM"),
    "an encoder": (_encoder, "lacks"),
    "quantised (GPTQ)": (
        lambda f: _changed(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "could not be loaded",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_checkpoint_that_is_not_whole_or_not_a_causal_lm_is_refused(
    out, llama, tmp_path, kind, capfd
):
    damage, message = DAMAGED[kind]
    llm = shutil.copytree(llama, tmp_path / "llm")
    damage(llm)
    targets = ["query", "value"] if kind == "an encoder" else TARGETS
    said = refusal(out, llm, adapt_target_modules=targets)
    assert f"adapt.llm='{llm}'" in said and message in said
    assert "\n" not in said


# ------------------------------------------------------------------ divergence


def test_a_loss_that_is_not_finite_names_the_learning_rate(out, llama, monkeypatch):
    def lost(*_, **__):
        return torch.tensor(math.nan, requires_grad=True) * 1

    monkeypatch.setattr("recipes.llm.hybrid_model.answer_loss", lost)
    with pytest.raises(ValueError, match="lora seed 0 has diverged .loss nan.: lower adapt.learn"):
        Pipeline.of(experiment(out, llama)).run_all()
    assert not (out / "adapt/lora-seed0/record.json").exists() and not (out / "evaluate").exists()


@pytest.mark.parametrize("method", ["lora", "ilora"])
def test_a_diverged_training_gives_no_figure(out, llama, method):
    made = Pipeline.of(experiment(out, llama, adapt_methods=[method], adapt_learning_rate=1e30))
    with pytest.raises(ValueError, match=r"has diverged .*: lower adapt.learning_rate=1e\+30"):
        made.run_all()
    assert not (out / "evaluate").exists()


def test_an_arm_that_diverges_names_its_own_rate(out, llama):
    arms = [{"method": "lora", "learning_rate": 1e25}]
    with pytest.raises(ValueError, match=r"lower adapt.learning_rate=1e\+25"):
        Pipeline.of(experiment(out, llama, arms=arms)).run_all()


@pytest.mark.parametrize("part", ["projector", "lora_B"])
def test_weights_that_are_not_finite_are_refused_though_the_losses_were(
    out, llama, monkeypatch, part
):
    def spoiled(trainer, label, *rest):
        losses = training.train_resumably(trainer, label, *rest)
        for name, weight in trainer.hybrid_model.named_parameters():
            if part in name and weight.requires_grad:
                weight.data.view(-1)[0] = math.inf
                return losses
        raise AssertionError("nothing to spoil")

    monkeypatch.setattr("recipes.llm.train_adapter.train_resumably", spoiled)
    with pytest.raises(ValueError, match=f"has diverged .*{part}.* is not finite"):
        Pipeline.of(experiment(out, llama)).run_all()
    assert not (out / "evaluate").exists()


def test_a_diverged_stand_in_names_its_rate(out):
    stand_in = replace(STAND_IN, learning_rate=1e30, max_steps=4)
    with pytest.raises(ValueError, match=r"stand-in has diverged .* adapt.stand_in.learning_rate="):
        Pipeline.of(experiment(out, adapt_stand_in=stand_in)).run_all()


def test_scores_that_are_not_finite_are_no_figures(out, llama, monkeypatch):
    def nothing(*_, **__):
        return np.full((len(_[2]), 5), -np.inf)

    monkeypatch.setattr("recipes.scoring.predictions.score_candidates", nothing)
    with pytest.raises(ValueError, match="lora seed 0: no row's scores are finite"):
        Pipeline.of(experiment(out, llama)).run_all()
