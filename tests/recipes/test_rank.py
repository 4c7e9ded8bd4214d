import math

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peft_ilora import ILoRAConfig
from recipes.llm.prompted import PromptInputs
from recipes.scoring.rank import _tied, answer_log_probs, score_candidates

VOCABULARY, EOS, WIDTH = 23, 1, 16
PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]
ANSWERS = [
    [[2, 3, EOS], [4, EOS], [5, 6, 7, 8, EOS]],
    [[EOS], [9, 10, EOS], [11, 12, EOS]],
    [[2, 3, 4, EOS], [2, 3, EOS], [2, EOS]],
]


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_positions=32,
        initializer_range=0.5,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return GPT2LMHeadModel(config).eval()


def with_ilora(llm):
    config = ILoRAConfig(
        num_experts=2,
        r=2,
        routing_dim=4,
        target_modules=["q_proj", "v_proj", "up_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llm, config).eval()


def prompt_inputs(model, rows, routing=None):
    longest = max(len(PROMPTS[row]) for row in rows)
    padding = [longest - len(PROMPTS[row]) for row in rows]
    ids = torch.tensor([[0] * pad + PROMPTS[row] for row, pad in zip(rows, padding, strict=True)])
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    embeds = model.get_input_embeddings()(ids).detach()
    chosen = None if routing is None else routing[list(rows)]
    return PromptInputs(embeds, torch.tensor(mask), chosen)


@torch.no_grad()
def naive_log_prob(model, prompt, answer, **routing):
    """One unpadded sequence, prompt and answer in a single forward without a cache."""
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False, **routing).logits[0]
    log_probs = logits.double().log_softmax(dim=-1)
    return sum(log_probs[len(prompt) + step - 1, token].item() for step, token in enumerate(answer))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_cached_scores_equal_naive_scoring_of_whole_sequences(make):
    model = make()
    found = answer_log_probs(model, prompt_inputs(model, [0, 1, 2]), ANSWERS)
    naive = [
        [naive_log_prob(model, prompt, answer) for answer in answers]
        for prompt, answers in zip(PROMPTS, ANSWERS, strict=True)
    ]
    torch.testing.assert_close(found.double(), torch.tensor(naive).double(), atol=1e-4, rtol=1e-5)


def test_each_candidate_of_a_routed_prompt_is_scored_under_its_own_routing():
    model = with_ilora(tiny_llama())
    routing = 3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    found = answer_log_probs(model, prompt_inputs(model, [0, 1, 2], routing), ANSWERS)
    naive = [
        [
            naive_log_prob(model, PROMPTS[row], answer, routing_embeds=routing[row : row + 1])
            for answer in ANSWERS[row]
        ]
        for row in range(3)
    ]
    torch.testing.assert_close(found.double(), torch.tensor(naive).double(), atol=1e-4, rtol=1e-5)
    others = answer_log_probs(model, prompt_inputs(model, [0, 1, 2], routing.flip(0)), ANSWERS)
    assert not torch.allclose(found, others, atol=1e-2)


def test_answers_of_all_lengths_share_one_probability():
    # Every sequence of at most two tokens that ends with EOS, or runs on: the masses sum to 1.
    model = tiny_llama()
    ended = [[EOS]] + [[token, EOS] for token in range(VOCABULARY) if token != EOS]
    running = [
        [first, second]
        for first in range(VOCABULARY)
        for second in range(VOCABULARY)
        if EOS not in (first, second)
    ]
    found = answer_log_probs(model, prompt_inputs(model, [1]), [ended + running])
    assert found.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_single_token_answers_need_no_second_forward():
    model = tiny_llama()
    found = answer_log_probs(model, prompt_inputs(model, [0]), [[[2], [EOS]]])
    naive = [naive_log_prob(model, PROMPTS[0], [token]) for token in (2, EOS)]
    assert found[0].tolist() == pytest.approx(naive, abs=1e-5)


def test_length_normalisation_divides_by_the_tokens():
    model = tiny_llama()
    inputs = prompt_inputs(model, [0, 1, 2])
    total = answer_log_probs(model, inputs, ANSWERS)
    mean = answer_log_probs(model, inputs, ANSWERS, length_normalised=True)
    lengths = torch.tensor([[len(answer) for answer in row] for row in ANSWERS])
    torch.testing.assert_close(mean * lengths, total)


def test_an_answer_without_tokens_is_refused():
    model = tiny_llama()
    with pytest.raises(ValueError, match="no token"):
        answer_log_probs(model, prompt_inputs(model, [0]), [[[2, EOS], []]])


class FakeAdapted:
    def __init__(self):
        self.model = tiny_llama()
        self.answer_ids = [[2, 3, EOS], [4, EOS], [5, 6, EOS], [2, 3, EOS]]
        self.batches = []

    def prompt_inputs(self, split, rows):
        assert split == "val"
        self.batches.append(list(rows))
        return prompt_inputs(self.model, rows)


def scores_of(batch_size):
    adapted = FakeAdapted()
    candidates = np.array([[0, 1, 3], [2, 0, 1], [3, 2, 1]])
    found = score_candidates(
        adapted, "val", [2, 0, 1], np.array([4, 5, 2]), candidates, batch_size=batch_size
    )
    return found, candidates, adapted


def test_scores_come_back_in_the_order_of_the_rows():
    found, candidates, adapted = scores_of(batch_size=6)
    for row, items, scores in zip([2, 0, 1], candidates, found, strict=True):
        naive = [
            naive_log_prob(adapted.model, PROMPTS[row], adapted.answer_ids[item]) for item in items
        ]
        assert scores.tolist() == pytest.approx(naive, abs=1e-4)


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 3), (6, 2), (64, 1)])
def test_the_batch_size_bounds_prompts_times_candidates(batch_size, batches):
    found, _, adapted = scores_of(batch_size)
    assert len(adapted.batches) == batches
    np.testing.assert_allclose(found, scores_of(6)[0], atol=1e-5)


def test_candidates_with_the_same_title_tie():
    found, _, _ = scores_of(batch_size=9)
    assert found[0, 0] == found[0, 2]
    assert math.isfinite(found.sum())


def test_rounding_never_breaks_a_tie_of_equal_titles():
    scores = np.array([[0.5, 0.5 + 1e-7, 0.4], [0.1, 0.2, 0.3]])
    candidates = np.array([[0, 2, 1], [1, 2, 0]])
    found = _tied(scores, candidates, [[7, 1], [8, 1], [7, 1]])
    assert found.tolist() == [[0.5, 0.5, 0.4], [0.1, 0.2, 0.2]]
