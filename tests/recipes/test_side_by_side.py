"""Candidates ranked side by side in one row, each with the prompt and itself in view."""

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peft_ilora import ILoRAConfig
from recipes.llm.prompted import PromptInputs
from recipes.scoring import rank
from recipes.scoring.rank import answer_log_probs

LENGTHS = (14, 9, 12)
ANSWERS = [
    [[2, 3, 1], [4, 1], [5, 6, 7, 1]],
    [[1], [9, 1], [11, 12, 1]],
    [[2, 3, 1], [2, 3, 4], [2, 1]],
]


def llama(attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=23, num_hidden_layers=2, initializer_range=0.5, **sizes)
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval()


def gated(model, **fields):
    config = ILoRAConfig(
        num_experts=2,
        r=2,
        routing_dim=4,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **fields,
    )
    adapted = get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "gate" in name and "proj" not in name:  # forms start at zero
            torch.nn.init.normal_(parameter)
    return adapted


def prompts(model, routing=None):
    """Left-padded prompts, and their tokens without padding."""
    generator = torch.Generator().manual_seed(3)
    tokens = [torch.randint(2, 23, (n,), generator=generator).tolist() for n in LENGTHS]
    longest = max(LENGTHS)
    ids = torch.tensor([[0] * (longest - len(one)) + one for one in tokens])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in tokens])
    embeds = model.get_input_embeddings()(ids).detach()
    return PromptInputs(embeds, mask, routing), tokens


@torch.no_grad()
def naive(model, tokens, routing=None):
    """Every prompt with every answer, one by one and without a cache."""
    found = torch.empty(len(ANSWERS), len(ANSWERS[0]))
    for row, prompt in enumerate(tokens):
        own = {} if routing is None else {"routing_embeds": routing[row : row + 1]}
        for place, answer in enumerate(ANSWERS[row]):
            ids = torch.tensor([prompt + answer])
            logits = model(input_ids=ids, use_cache=False, **own).logits[0].log_softmax(dim=-1)
            steps = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            found[row, place] = sum(logits[s, t] for s, t in zip(steps, answer, strict=True))
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_answer_sees_the_prompt_and_itself(attention):
    model = llama(attention)
    inputs, tokens = prompts(model)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(given.get("input_ids")), with_kwargs=True
    )
    found = answer_log_probs(model, inputs, ANSWERS)
    assert [None if one is None else tuple(one.shape) for one in shapes] == [None, (3, 9)]
    torch.testing.assert_close(found, naive(model, tokens), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gate_form": "scale_shift", "gate": "trunk"},
        {"gate_input": "token", "gate_scope": "per_module"},
    ],
    ids=["softmax", "scale_shift-trunk", "token"],
)
def test_a_routed_row_keeps_its_routing_in_all_answers(fields):
    model = gated(llama(), **fields)
    routing = None
    if "gate_input" not in fields:
        routing = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    inputs, tokens = prompts(model, routing)
    found = answer_log_probs(model, inputs, ANSWERS)
    torch.testing.assert_close(found, naive(model, tokens, routing), atol=1e-4, rtol=1e-5)


def test_it_is_what_a_repeated_cache_gives(monkeypatch):
    model = llama()
    inputs, _ = prompts(model)
    found = answer_log_probs(model, inputs, ANSWERS)
    monkeypatch.setattr(rank, "MASKED", ())
    torch.testing.assert_close(answer_log_probs(model, inputs, ANSWERS), found)


def test_models_that_may_read_no_such_mask_are_left_to_the_repeated_cache():
    cache = DynamicCache(config=llama().config)
    assert rank._takes_masks(llama(), cache)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 23, "n_positions": 32}
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    assert not rank._takes_masks(GPT2LMHeadModel(GPT2Config(**sizes, **ends)), cache)
    prefix = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    assert not rank._takes_masks(get_peft_model(llama(), prefix), cache)
