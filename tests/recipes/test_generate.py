import numpy as np
import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split as SplitPattern
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peft_ilora import ILoRAConfig
from recipes.evaluation.answers import parse_answer, parse_answer_by_substring
from recipes.llm.adapted import PromptInputs
from recipes.scoring.batching import batches_by_length
from recipes.scoring.generate import first_line, generate_answers

VOCABULARY = ["<pad>", "</s>", "\n", *"abcdefghijklmnopqrstu"]
PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15, 16], [17, 18, 19], [20, 21]]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    model = WordLevel({token: index for index, token in enumerate(VOCABULARY)}, unk_token="<pad>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = SplitPattern("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


class FakeAdapted:
    """Prompts of random embeddings over a tiny random Llama, with an iLoRA if `routed`."""

    def __init__(self, routed: bool) -> None:
        torch.manual_seed(0)
        llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                initializer_range=1.0,
            )
        ).eval()
        self.routing = torch.randn(len(PROMPTS), 4) if routed else None
        self.tokenizer = tiny_tokenizer()
        self.embed = llm.get_input_embeddings()
        self.model = llm
        if routed:
            config = ILoRAConfig(
                num_experts=2,
                r=2,
                routing_dim=4,
                target_modules=["q_proj", "v_proj"],
                init_lora_weights=False,
                task_type="CAUSAL_LM",
            )
            self.model = get_peft_model(llm, config).eval()
        self.asked: list[list[int]] = []

    def prompt_inputs(self, split, rows):
        assert split == "test"
        self.asked.append(list(rows))
        longest = max(len(PROMPTS[row]) for row in rows)
        ids = [[0] * (longest - len(PROMPTS[row])) + PROMPTS[row] for row in rows]
        mask = [[0] * (longest - len(PROMPTS[row])) + [1] * len(PROMPTS[row]) for row in rows]
        routing = None if self.routing is None else self.routing[list(rows)]
        embeds = self.embed(torch.tensor(ids)).detach()
        return PromptInputs(embeds, torch.tensor(mask), routing)


def greedy_by_hand(adapted, row, steps):
    """Argmax of a whole forward, token by token: no cache, no padding, no batch."""
    inputs = adapted.prompt_inputs("test", [row])
    routing = {} if inputs.routing_embeds is None else {"routing_embeds": inputs.routing_embeds}
    embeds, tokens = inputs.inputs_embeds, []
    for _ in range(steps):
        with torch.no_grad():
            logits = adapted.model(inputs_embeds=embeds, **routing).logits
        token = int(logits[0, -1].argmax())
        if token == 1:
            break
        tokens.append(token)
        embeds = torch.cat([embeds, adapted.embed(torch.tensor([[token]])).detach()], dim=1)
    return first_line(adapted.tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batched_generation_equals_greedy_decoding_by_hand(routed, batch_size):
    adapted = FakeAdapted(routed)
    rows = [3, 0, 4, 2, 1]
    lengths = np.array([len(PROMPTS[row]) for row in rows])
    found = generate_answers(
        adapted, "test", rows, lengths, batch_size=batch_size, max_new_tokens=6
    )
    assert found == [greedy_by_hand(adapted, row, 6) for row in rows]
    assert len(set(found)) > 1


def test_a_checkpoint_that_asks_for_sampling_is_still_decoded_greedily():
    adapted = FakeAdapted(routed=False)
    adapted.model.generation_config.do_sample = True
    adapted.model.generation_config.temperature = 5.0
    adapted.model.generation_config.top_p = 0.9
    lengths = np.array([len(PROMPTS[0])])
    found = generate_answers(adapted, "test", [0], lengths, batch_size=1, max_new_tokens=6)
    assert found == [greedy_by_hand(adapted, 0, 6)]


def test_generation_stops_at_the_end_of_sequence():
    adapted = FakeAdapted(routed=False)
    lengths = np.array([len(PROMPTS[0])])
    before = generate_answers(adapted, "test", [0], lengths, batch_size=1, max_new_tokens=6)[0]
    second = VOCABULARY.index(before.split()[1])
    head = adapted.model.lm_head.weight.data
    head[[1, second]] = head[[second, 1]].clone()  # what was the second token now ends the answer
    found = generate_answers(adapted, "test", [0], lengths, batch_size=1, max_new_tokens=6)
    assert found == [before.split()[0]]


def test_batches_start_with_the_longest_prompts_and_cover_each_row_once():
    batches = [batch.tolist() for batch in batches_by_length(np.array([5, 2, 7, 3, 2]), 2, "x")]
    assert batches == [[2, 0], [3, 1], [4]]


def test_the_first_line_of_the_stripped_text_is_kept():
    assert first_line("\n  Blue Train \nKind of Blue") == "Blue Train"
    assert first_line(" \n ") == ""


TITLES = ["Blue", "Blue Train", "Giant  Steps", "Ágætis"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Blue", 0),
        ("blue TRAIN", 1),
        (" giant\tsteps ", 2),
        ("ÁGÆTIS", 3),
        ("Blue Trai", None),
        ("Blue Train, Blue", None),
        ("the answer is Blue", None),
        ("", None),
    ],
)
def test_an_answer_is_valid_when_it_is_exactly_one_title(text, index):
    assert parse_answer(text, TITLES) == index


def test_an_answer_that_two_candidates_share_is_ambiguous():
    assert parse_answer("blue", ["Blue", "blue ", "Red"]) is None
    assert parse_answer("red", ["Blue", "blue ", "Red"]) == 2


def test_an_empty_answer_names_no_candidate_unless_its_title_is_empty():
    assert parse_answer("", ["a", "b"]) is None


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Blue", 0),
        ("Blue Train", None),  # a perfect answer, voided by the shorter title inside it
        ("the answer is BLUE!", 0),
        ("Giant Steps", None),  # white space is not normalised
        ("nothing", None),
    ],
)
def test_the_reference_rule_wants_exactly_one_title_inside_the_answer(text, index):
    assert parse_answer_by_substring(text, TITLES) == index


def test_by_the_reference_rule_an_empty_title_voids_every_other_answer():
    assert parse_answer_by_substring("Blue", ["Blue", ""]) is None
