"""Every family of causal language models is ranked and generated rightly, or refused."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from recipes.llm.prompted import PromptInputs
from recipes.scoring.probe import check_beams, check_language_model
from recipes.scoring.rank import answer_log_probs, repeatable_cache

from .language_models import SMALL, tiny_model

VOCABULARY, EOS = 60, 2
PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [8, 9], [10, 11, 12, 13, 14, 15, 16]]
ANSWERS = [
    [[20, 21, EOS], [22, EOS], [23, 24, 25, 26, 27, 28, EOS]],
    [[EOS], [30, 31, EOS], [32, 33, EOS]],
    [[20, 21, 22, EOS], [20, 21, EOS], [20, EOS]],
]
SIZES = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 8}
NAMED = {"n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
BLOOM = {"hidden_size": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
WINDOW = {"sliding_window": 5}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
RECURRENT = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2}
HEADS = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
STATES = {"mamba_d_state": 4, **HEADS}
MAMBA2 = {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}
JAMBA = {
    "mamba_d_state": 4,
    "mamba_dt_rank": 2,
    "use_mamba_kernels": False,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
}
FEW_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
CACHED: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "gemma": SIZES,
    "phi": SIZES,
    "gpt_neox": SIZES,
    "stablelm": SIZES,
    "cohere": SIZES,
    "olmo2": SIZES,
    "opt": {**SIZES, "ffn_dim": 16, "word_embed_proj_dim": 16},
    "biogpt": SIZES,
    "gpt2": NAMED,
    "gptj": {**NAMED, "rotary_dim": 4},
    "bloom": BLOOM,
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mistral": SIZES | WINDOW,
    "gemma2": {**SIZES, **WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**SIZES, **WINDOW, "query_pre_attn_scalar": 8},
    "cohere2": SIZES | WINDOW,
    "gpt_oss": {**SIZES, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**SIZES, **WINDOW, "num_local_experts": 4},
}
"""Families whose prompts share their cache among candidates; windows are shorter than prompts."""
UNCACHED: dict[str, dict[str, Any]] = {
    "mamba": RECURRENT,
    "falcon_mamba": RECURRENT,
    "qwen3_next": {**SIZES, **LINEAR, **EXPERTS},
    "qwen3_5_text": {**SIZES, **LINEAR},
    "olmo_hybrid": {**SIZES, **LINEAR},
    "lfm2": {**SIZES, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"hidden_size": 16, "num_hidden_layers": 2, **MAMBA2},
    "jamba": SIZES | JAMBA,
    "granitemoehybrid": {
        **SIZES,
        **STATES,
        **FEW_EXPERTS,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 16,
    },
}
"""Recurrent and hybrid families, whose candidates are run with their prompts."""
NO_EMBEDS = "cannot be used (ValueError: You passed `inputs_embeds`"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (SIZES, "lets earlier tokens see later ones"),
    "roberta": (SIZES, "lets earlier tokens see later ones"),
    "electra": (SIZES, "lets earlier tokens see later ones"),
    "rwkv": (
        {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2},
        "gives a prompt other scores when it is padded on the left",
    ),
    "bart": (
        {"d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 16, "decoder_attention_heads": 2},
        "gives a prompt other scores when it is padded on the left",
    ),
    "recurrent_gemma": (
        {
            **SIZES,
            "lru_width": 16,
            "attention_window_size": 5,
            "block_types": ["recurrent", "attention"],
            "num_key_value_heads": 1,
        },
        "gives a prompt other scores when it is padded on the left",
    ),
    "bamba": ({**SIZES, **STATES, "attn_layer_indices": [1]}, NO_EMBEDS),
    "falcon_h1": ({**SIZES, **STATES, "mamba_d_ssm": 32}, NO_EMBEDS),
    "openai-gpt": (NAMED, NO_EMBEDS),
    "moshi": (SIZES | WINDOW, "ranks wrongly in batches"),
}


def make(family: str, sizes: dict[str, Any]) -> PreTrainedModel:
    return tiny_model(family, VOCABULARY, **sizes)


def inputs_of(model: PreTrainedModel) -> PromptInputs:
    longest = max(map(len, PROMPTS))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]
    embeds = model.get_input_embeddings()(torch.tensor(ids)).detach()
    return PromptInputs(embeds, torch.tensor(mask), None)


@torch.no_grad()
def naive(model: PreTrainedModel) -> torch.Tensor:
    """One unpadded sequence after the other, in a single forward without a cache."""
    found = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        for answer in answers:
            logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
            scores = logits.double().log_softmax(dim=-1)
            steps = enumerate(answer, start=len(prompt) - 1)
            found.append(sum(scores[place, token].item() for place, token in steps))
    return torch.tensor(found).view(3, 3)


@pytest.mark.parametrize("family", [*CACHED, *UNCACHED])
def test_a_family_is_ranked_as_whole_sequences_are(family):
    model = make(family, (CACHED | UNCACHED)[family])
    check_language_model(model, family)
    check_beams(model, family)
    with torch.no_grad():
        prompt = model(input_ids=torch.tensor(PROMPTS[:1]), use_cache=True)
    assert (repeatable_cache(prompt) is not None) == (family in CACHED)
    found = answer_log_probs(model, inputs_of(model), ANSWERS)
    torch.testing.assert_close(found, naive(model), atol=1e-4, rtol=1e-4)
    mean = answer_log_probs(model, inputs_of(model), ANSWERS, length_normalised=True)
    lengths = torch.tensor([[len(answer) for answer in row] for row in ANSWERS])
    torch.testing.assert_close(mean * lengths, found, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", list(REFUSED))
def test_a_family_that_would_be_measured_wrongly_is_refused(family):
    sizes, message = REFUSED[family]
    with pytest.raises(ValueError, match="choose another adapt.llm") as refused:
        check_language_model(make(family, sizes), family)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_family_whose_beams_go_wrong_is_refused_where_there_are_beams():
    linear = {"layer_types": ["linear_attention", "full_attention"], "block_size": 4}
    model = make("minimax", {**SIZES, **FEW_EXPERTS, **linear})
    check_language_model(model, "minimax")
    with pytest.raises(ValueError, match=r"other beams than .* set evaluate.num_beams 1"):
        check_beams(model, "minimax")


def test_an_encoder_that_is_a_decoder_is_taken():
    check_language_model(make("bert", {**SIZES, "is_decoder": True}), "bert")


def test_bfloat16_is_not_taken_for_a_fault():
    check_language_model(make("llama", SIZES).bfloat16(), "llama")


def test_the_generation_settings_of_a_checkpoint_do_not_matter_to_the_trial():
    model = make("llama", SIZES)
    model.generation_config.update(num_beams=3, repetition_penalty=9.0, eos_token_id=list(range(9)))
    check_language_model(model, "llama")
