"""A prefix gives what PEFT's own does, and the same whichever way the model is run."""

from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from recipes.llm.frozen_prefix import decoder_layers, prefix_states, without_layers
from recipes.llm.language_model import peft_wrapping
from recipes.llm.prefix import check_prefix, prefixed
from recipes.llm.prompted import PromptInputs
from recipes.llm.user_prefix import (
    UserPrefix,
    check_prefix_is_read,
    start_prefix,
    user_prefix,
)
from recipes.scoring import rank
from recipes.scoring.rank import answer_log_probs

from .language_models import SMALL, tiny_model
from .test_causal_families import CACHED, UNCACHED

TOKENS, LAYERS, WIDTH = 3, 2, 8  # one head of keys
LENGTHS = 7, 4
ANSWERS = [[[3, 4, 1], [5, 1]], [[1], [6, 7, 8, 1]]]


def prompts() -> tuple[Tensor, Tensor]:
    """Two left-padded prompts, and their mask."""
    ids = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    return ids * mask, mask


def places(mask: Tensor) -> Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama", 40, **SMALL)


@pytest.fixture(scope="module")
def prefix() -> Tensor:
    """One for each prompt, [2, n, layers * 2 * width]."""
    shape = 2, TOKENS, LAYERS * 2 * WIDTH
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def logits(model: PreTrainedModel, prefix: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad(), prefixed(model, prefix, LAYERS):
        found = model(input_ids=ids, attention_mask=mask, position_ids=places(mask))
    return found.logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_is_pefts_prefix_tuning(attention, prefix) -> None:
    base = tiny_model("llama", 40, **SMALL)
    base.set_attn_implementation(attention)
    config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=TOKENS)
    with peft_wrapping():
        peft = get_peft_model(base, config)
    assert isinstance(peft, PeftModel)
    encoders: Any = peft.prompt_encoder
    encoders["default"].embedding.weight.data = prefix[0].clone()
    ids, mask = prompts()
    with torch.no_grad():
        # PEFT counts positions from behind its prefix.
        theirs = peft(input_ids=ids, attention_mask=mask, position_ids=places(mask) - TOKENS)
    ours = logits(base, prefix[:1], ids, mask)
    kept = mask.bool()
    torch.testing.assert_close(ours[kept], theirs.logits[kept], atol=1e-5, rtol=1e-5)
    plain = base(input_ids=ids, attention_mask=mask, position_ids=places(mask)).logits
    assert (ours[kept] - plain[kept]).abs().max() > 0.1  # and gone after the block


def test_each_prompt_has_its_own(model, prefix) -> None:
    ids, mask = prompts()
    found = logits(model, prefix, ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = logits(
            model, prefix[row : row + 1], ids[row : row + 1, -length:], mask[row, -length:][None]
        )
        torch.testing.assert_close(found[row, -length:], alone[0], atol=1e-5, rtol=1e-5)


def test_a_prompts_cache_is_repeated_for_its_candidates(model, prefix, monkeypatch) -> None:
    ids, mask = prompts()
    inputs = PromptInputs(model.get_input_embeddings()(ids), mask, None)
    with prefixed(model, prefix, LAYERS):
        side_by_side = answer_log_probs(model, inputs, ANSWERS)
        monkeypatch.setattr(rank, "MASKED", ())
        shared = answer_log_probs(model, inputs, ANSWERS)
        monkeypatch.setattr(rank, "repeatable_cache", lambda outputs: None)
        whole = answer_log_probs(model, inputs, ANSWERS)
    torch.testing.assert_close(side_by_side, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared, whole, atol=1e-5, rtol=1e-5)
    for row, (length, answers) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
        for choice, answer in enumerate(answers):
            sequence = torch.cat([ids[row, -length:], torch.tensor(answer)])[None]
            found = logits(model, prefix[row : row + 1], sequence, torch.ones_like(sequence))
            steps = found[0, length - 1 : -1].log_softmax(dim=-1)
            wanted = steps[torch.arange(len(answer)), torch.tensor(answer)].sum()
            torch.testing.assert_close(shared[row, choice], wanted, atol=1e-4, rtol=1e-4)


def test_generation_continues_prompts_behind_it(model, prefix) -> None:
    ids, mask = prompts()
    greedy = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0)
    with prefixed(model, prefix, LAYERS):
        tokens = model.generate(
            inputs_embeds=model.get_input_embeddings()(ids),
            attention_mask=mask,
            generation_config=greedy,
        )
    for row, length in enumerate(LENGTHS):
        sequence = ids[row, -length:]
        for token in tokens[row]:
            one = sequence[None]
            found = logits(model, prefix[row : row + 1], one, torch.ones_like(one))
            assert found[0, -1].argmax() == token
            sequence = torch.cat([sequence, token[None]])


def test_all_beams_of_a_prompt_go_on_behind_its_own(model, prefix) -> None:
    ids, mask = prompts()
    settings = GenerationConfig(
        max_new_tokens=3, do_sample=False, pad_token_id=0, num_beams=4, num_return_sequences=4
    )

    def beams(own: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with prefixed(model, own, LAYERS):
            return model.generate(
                inputs_embeds=model.get_input_embeddings()(ids),
                attention_mask=mask,
                generation_config=settings,
            )

    together = beams(prefix, ids, mask).view(len(LENGTHS), 4, 3)
    for row, length in enumerate(LENGTHS):
        own, alone = prefix[row : row + 1], ids[row : row + 1, -length:]
        assert torch.equal(together[row], beams(own, alone, torch.ones_like(alone)))
    swapped = beams(prefix.flip(0), ids, mask).view(len(LENGTHS), 4, 3)
    assert not torch.equal(together, swapped)


def test_the_last_layers_have_it_behind_a_frozen_prefix_of_layers(model, prefix) -> None:
    ids, mask = prompts()
    last = prefix[:, :, : 2 * WIDTH]
    with torch.no_grad(), prefixed(model, last, 1):
        wanted = model(input_ids=ids, attention_mask=mask, position_ids=places(mask)).logits
    states = prefix_states(model, 1, ids, mask)
    with (
        torch.no_grad(),
        without_layers(decoder_layers(model), range(1)),
        prefixed(model, last, 1),
    ):
        found = model(inputs_embeds=states, attention_mask=mask, position_ids=places(mask)).logits
    kept = mask.bool()
    torch.testing.assert_close(found[kept], wanted[kept], atol=1e-5, rtol=1e-5)


def test_a_users_prefix_starts_at_zero_and_is_as_wide_as_the_models_keys(model) -> None:
    made = user_prefix(model, recommender_width=5, tokens=TOKENS, last_layers=None)
    start_prefix(made, 0)
    users = torch.randn(2, 5)
    assert made(users).shape == (2, TOKENS, LAYERS * 2 * WIDTH)
    assert not made(users).any() and made.first.weight.any()
    one = user_prefix(model, recommender_width=5, tokens=TOKENS, last_layers=1)
    assert isinstance(one, UserPrefix) and one.second.out_features == TOKENS * 2 * WIDTH


def test_a_model_without_keys_and_values_in_every_layer_is_refused() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    mamba = tiny_model("mamba", 40, **sizes)
    with pytest.raises(ValueError, match=r"adapt.llm='m': MambaForCausalLM .* choose another"):
        check_prefix(mamba, "m")


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "opt"])
def test_a_prefix_that_every_layer_reads_is_let_pass(family) -> None:
    made = tiny_model(family, 40, **CACHED[family])
    check_prefix(made, "m")
    check_prefix_is_read(made, "m")


def test_a_hybrid_model_whose_other_layers_have_a_cache_too_is_refused() -> None:
    made = tiny_model("lfm2", 40, **UNCACHED["lfm2"])
    check_prefix(made, "m")
    with pytest.raises(ValueError, match=r"Lfm2ForCausalLM cannot be given a prefix .* leave out"):
        check_prefix_is_read(made, "m")


def test_a_prefix_that_a_layer_does_not_read_is_refused(model, monkeypatch) -> None:
    last = decoder_layers(model)[-1].self_attn.forward

    def alone(*args, past_key_values=None, attention_mask=None, **kwargs):
        return last(*args, past_key_values=None, attention_mask=None, **kwargs)

    monkeypatch.setattr(decoder_layers(model)[-1].self_attn, "forward", alone)
    with pytest.raises(ValueError, match="not every layer reads it"):
        check_prefix_is_read(model, "m")
