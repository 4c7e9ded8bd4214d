import numpy as np
import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split as SplitPattern
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WatermarkingConfig,
)

from peft_ilora import ILoRAConfig
from recipes.evaluation.answers import invalid_kind, parse_answer, parse_answer_by_substring
from recipes.evaluation.catalogue import catalogue_places
from recipes.experiment import EvaluateConfig
from recipes.llm.prompted import PromptInputs
from recipes.prompting.written import Written, first_line
from recipes.scoring.batching import batches_by_length
from recipes.scoring.generate import Decoding, generate_answers, generated_tokens
from recipes.scoring.masking import Masked
from recipes.scoring.predictions import beam_scores
from recipes.scoring.rank import answer_log_probs
from recipes.scoring.rows import EvaluatedRows
from recipes.scoring.trie import is_answer, next_tokens, trie, without

VOCABULARY = ["<pad>", "</s>", "\n", *"abcdefghijklmnopqrstu"]
GREEDY = Decoding(max_new_tokens=6)
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
        self.answer_end = self.tokenizer.eos_token_id
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
        adapted, "test", rows, lengths, batch_size=batch_size, decoding=GREEDY
    ).texts
    assert found == [greedy_by_hand(adapted, row, 6) for row in rows]
    assert len(set(found)) > 1


ANSWERS = [[[4, 5, 1], [4, 1], [9, 9, 9, 1]], [[7, 1], [8, 6, 1]], [[3, 1]]]


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_constrained_answers_are_the_greedy_walk_through_each_rows_own_answers(routed, batch_size):
    adapted = FakeAdapted(routed)
    rows = [3, 0, 4]
    found = generate_answers(
        adapted,
        "test",
        rows,
        np.array([len(PROMPTS[row]) for row in rows]),
        batch_size=batch_size,
        decoding=Decoding(max_new_tokens=4),
        allowed=ANSWERS,
    ).texts
    for row, answers, text in zip(rows, ANSWERS, found, strict=True):
        inputs = adapted.prompt_inputs("test", [row])
        routing = {} if inputs.routing_embeds is None else {"routing_embeds": inputs.routing_embeds}
        embeds, left, written = inputs.inputs_embeds, answers, []
        while any(len(answer) > len(written) for answer in left):
            with torch.no_grad():
                logits = adapted.model(inputs_embeds=embeds, **routing).logits[0, -1]
            following = [answer[len(written)] for answer in left]
            written.append(max(following, key=lambda token: float(logits[token])))
            left = [answer for answer in left if answer[: len(written)] == written]
            step = adapted.embed(torch.tensor([[written[-1]]])).detach()
            embeds = torch.cat([embeds, step], dim=1)
        assert written in answers
        assert text == adapted.tokenizer.decode(written[:-1])


def test_a_trie_holds_every_answer_that_begins_another() -> None:
    root = trie([[4, 5, 1], [4, 1], [9, 1], [9, 1]])
    assert sorted(next_tokens(root, [])) == [4, 9]
    assert sorted(next_tokens(root, [4])) == [1, 5]
    assert next_tokens(root, [4, 1]) == next_tokens(root, [4, 1, 0, 0]) == []
    assert next_tokens(root, [5]) == next_tokens(root, [4, 9, 1]) == []


def test_a_trie_without_answers_leaves_the_shared_one_as_it_is() -> None:
    root = trie([[4, 5, 1], [4, 1], [9, 1]])
    left = without(root, [[4, 5, 1], [9, 1], [7, 7]])
    assert left == trie([[4, 1]])
    assert root == trie([[4, 5, 1], [4, 1], [9, 1]])
    assert without(left, [[4, 1]]) == {}
    assert is_answer(root, [4, 1]) and not is_answer(root, [4]) and not is_answer(root, [])
    assert not is_answer(root, [4, 1, 0])


MANY = [[3, 1], [4, 5, 1], [4, 6, 1], [4, 1], [9, 9, 9, 1], [7, 8, 1]]


@pytest.mark.parametrize("length_normalised", [False, True])
@pytest.mark.parametrize("routed", [False, True])
def test_as_many_beams_as_answers_are_the_ranking_by_likelihood(routed, length_normalised):
    adapted, rows = FakeAdapted(routed), [3, 0, 4]
    decoding = Decoding(max_new_tokens=4, num_beams=6, length_normalised=length_normalised)
    found = generated_tokens(
        adapted,
        "test",
        rows,
        np.array([len(PROMPTS[row]) for row in rows]),
        batch_size=12,
        decoding=decoding,
        roots=lambda _: trie(MANY),
    )
    assert sorted(map(len, adapted.asked)) == [1, 2]  # 12 beams at once are two rows of 6
    for row, beams in zip(rows, found, strict=True):
        inputs = adapted.prompt_inputs("test", [row])
        scores = answer_log_probs(adapted.model, inputs, [MANY], length_normalised)[0]
        order = scores.argsort(descending=True).tolist()
        assert beams == [MANY[index] for index in order]
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("num_beams", [2, 6])
def test_the_catalogue_is_scored_by_the_places_of_beams_without_what_is_masked(num_beams):
    adapted, numbers = FakeAdapted(routed=True), [3, 0, 4]
    titles = [*MANY, MANY[3]]  # items 3 and 6 have the same title
    adapted.answer_ids = titles
    adapted.prompt_lengths = lambda split, rows: np.array([len(PROMPTS[row]) for row in rows])
    rows = EvaluatedRows(
        split="test",
        rows=np.array(numbers),
        user_ids=np.arange(3),
        targets=np.zeros(3, dtype=np.int64),
        candidates=np.tile(np.arange(7), (3, 1)),
        target_index=np.zeros(3, dtype=np.int64),
        whole_catalogue=True,
    )
    masked = Masked(np.array([0, 0, 2, 2, 2]), np.array([1, 3, 3, 5, 6]))
    config = EvaluateConfig(batch_size=12, num_beams=num_beams, decoding="candidates")
    found = beam_scores(adapted, "ilora", rows, masked, config)
    for place, row in enumerate(numbers):
        inputs = adapted.prompt_inputs("test", [row])
        scores = answer_log_probs(adapted.model, inputs, [MANY])[0]
        # Item 3 is masked in row 0, but its twin 6 is not, so its title may be written.
        hidden = {0: {1}, 1: set(), 2: {3, 5}}[place]
        order = [item for item in scores.argsort(descending=True).tolist() if item not in hidden]
        wanted = np.zeros(7)
        for rank, item in enumerate(order):
            wanted[item] = num_beams - rank
        wanted[6] = wanted[3]
        if num_beams == 6:
            assert found[place].tolist() == wanted.tolist()
        else:
            assert sorted(set(found[place])) == [0, 1, 2]
            assert all(found[place][item] == 0 for item in hidden)


@pytest.mark.parametrize("routed", [False, True])
def test_each_row_has_its_own_answers_as_beams_and_no_more_than_there_are(routed):
    adapted, rows = FakeAdapted(routed), [3, 0, 4]
    given = [MANY[:2], MANY, [MANY[4]]]
    lengths = np.array([len(PROMPTS[row]) for row in rows])
    decoding = Decoding(max_new_tokens=4, num_beams=5)
    found = generate_answers(
        adapted, "test", rows, lengths, batch_size=99, decoding=decoding, allowed=given
    )
    texts = [[adapted.tokenizer.decode(ids[:-1]) for ids in answers] for answers in given]
    assert sorted(found.beams[0]) == sorted(texts[0])
    assert len(set(found.beams[1])) == 5 and set(found.beams[1]) < set(texts[1])
    assert found.beams[2] == texts[2]
    assert found.texts == [beams[0] for beams in found.beams]
    assert not any(found.cut_short)


def test_free_beams_are_sorted_and_told_to_be_cut_short():
    adapted = FakeAdapted(routed=True)
    lengths = np.array([len(PROMPTS[row]) for row in range(5)])
    decoding = Decoding(max_new_tokens=3, num_beams=3)
    found = generate_answers(
        adapted, "test", list(range(5)), lengths, batch_size=6, decoding=decoding
    )
    assert all(1 <= len(beams) <= 3 for beams in found.beams)
    assert any(found.cut_short)
    alone = [
        generate_answers(
            adapted, "test", [row], lengths[[row]], batch_size=1, decoding=decoding
        ).beams[0]
        for row in range(5)
    ]
    assert found.beams == alone


def break_row_0(adapted):
    """Put a NaN into the last embedding of row 0's prompt."""
    inputs_of = adapted.prompt_inputs

    def broken(split, asked):
        inputs = inputs_of(split, asked)
        inputs.inputs_embeds[asked.index(0), -1] = float("nan")
        return inputs

    adapted.prompt_inputs = broken


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_row_of_nan_leaves_the_other_rows_of_its_batch_as_they_are(num_beams):
    adapted, rows = FakeAdapted(routed=False), [3, 0, 4]
    lengths = np.array([len(PROMPTS[row]) for row in rows])
    decoding = Decoding(max_new_tokens=4, num_beams=num_beams)
    settings = {"batch_size": 9, "decoding": decoding, "allowed": ANSWERS}
    before = generate_answers(adapted, "test", rows, lengths, **settings)
    break_row_0(adapted)
    found = generate_answers(adapted, "test", rows, lengths, **settings)
    assert [found.texts[0], found.texts[2]] == [before.texts[0], before.texts[2]]
    assert [found.beams[0], found.beams[2]] == [before.beams[0], before.beams[2]]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_what_a_row_of_nan_would_write_is_nothing(num_beams):
    """Beams are chosen among NaN at random, and may be an answer by chance."""
    adapted, rows = FakeAdapted(routed=False), [3, 0, 4]
    adapted.answer_ids = MANY
    adapted.prompt_lengths = lambda split, asked: np.array([len(PROMPTS[row]) for row in asked])
    break_row_0(adapted)
    decoding = Decoding(max_new_tokens=4, num_beams=num_beams)
    lengths = adapted.prompt_lengths("test", rows)
    found = generated_tokens(adapted, "test", rows, lengths, batch_size=9, decoding=decoding)
    assert found[1] == [[]] and all(found[place][0] for place in (0, 2))
    if num_beams == 1:
        return
    config = EvaluateConfig(batch_size=9, num_beams=num_beams, decoding="candidates", ks=[1])
    chosen = EvaluatedRows(
        split="test",
        rows=np.array(rows),
        user_ids=np.arange(3),
        targets=np.array([0, 1, 2]),
        candidates=np.tile(np.arange(6), (3, 1)),
        target_index=np.array([0, 1, 2]),
        whole_catalogue=True,
    )
    scores = beam_scores(adapted, "ilora", chosen, Masked.nothing(), config)
    assert np.isnan(scores).any(axis=1).tolist() == [False, True, False]

    def scorer(part):
        return beam_scores(adapted, "ilora", part, Masked.nothing(), config)

    places = catalogue_places(scorer, chosen, Masked.nothing(), config)
    assert places.lost.tolist() == [False, True, False]
    assert (places.better[1], places.tied[1]) == (5, 1)  # the last of six, and no random order


def test_a_chats_answer_ends_at_the_end_of_the_document_too():
    adapted = FakeAdapted(routed=False)
    lengths = np.array([len(PROMPTS[0])])
    before = generate_answers(adapted, "test", [0], lengths, batch_size=1, decoding=GREEDY)
    words = before.texts[0].split()
    adapted.answer_end = VOCABULARY.index(words[2])  # that of a turn; eos is another one
    found = generate_answers(adapted, "test", [0], lengths, batch_size=1, decoding=GREEDY)
    assert found.texts == [" ".join(words[:2])] and found.cut_short == [False]
    head = adapted.model.lm_head.weight.data
    second = VOCABULARY.index(words[1])
    head[[1, second]] = head[[second, 1]].clone()  # eos comes before the end of the turn
    found = generate_answers(adapted, "test", [0], lengths, batch_size=1, decoding=GREEDY)
    assert found.texts == [words[0]] and found.cut_short == [False]


LEAKS = {
    "sampling": {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "top_k": 3},
    "beams": {"num_beams": 3, "length_penalty": -5.0, "early_stopping": True},
    "several answers": {"num_beams": 2, "num_return_sequences": 2},
    "repetition penalty": {"repetition_penalty": 50.0},
    "no repeated n-grams": {"no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[token] for token in range(3, 15)]},
    "sequence bias": {"sequence_bias": [[[token], 90.0] for token in (7, 9)]},
    "suppressed tokens": {"suppress_tokens": list(range(3, 15))},
    "tokens suppressed at the beginning": {"begin_suppress_tokens": list(range(3, 15))},
    "forced bos": {"forced_bos_token_id": 7},
    "forced eos": {"forced_eos_token_id": 7, "max_length": 5},
    "a minimum length": {"min_length": 30, "min_new_tokens": 6},
    "a maximum length": {"max_length": 1, "max_time": 0.0},
    "a decaying length penalty": {"exponential_decay_length_penalty": [0, 9.0]},
    "other ends": {"eos_token_id": list(range(2, 15))},
    "other padding": {"pad_token_id": 5},
    "stop strings": {"stop_strings": ["a", "b", "c", "d", "e", "f"]},
    "a watermark": {"watermarking_config": {"greenlist_ratio": 0.1, "bias": 50.0}},
    "guidance": {"guidance_scale": 9.0},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "a static cache": {"cache_implementation": "static"},
    "outputs in a dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "renormalised scores": {"renormalize_logits": True, "temperature": 0.0},
    "no cache": {"use_cache": False},
    "settings of its own": {"invented": 3},
}


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("leak", list(LEAKS))
def test_a_checkpoints_generation_config_never_steers_an_evaluation(leak, routed):
    adapted = FakeAdapted(routed)
    rows, lengths = list(range(len(PROMPTS))), np.array([len(prompt) for prompt in PROMPTS])
    settings = {"batch_size": 5, "decoding": GREEDY}
    own = adapted.model.generation_config
    for name, value in LEAKS[leak].items():
        setattr(own, name, value)
    if leak == "a watermark":
        own.watermarking_config = WatermarkingConfig(**LEAKS[leak]["watermarking_config"])
    found = generate_answers(adapted, "test", rows, lengths, **settings).texts
    assert found == [greedy_by_hand(adapted, row, 6) for row in rows]
    assert adapted.model.generation_config is own


def test_generation_stops_at_the_end_of_sequence():
    adapted = FakeAdapted(routed=False)
    lengths = np.array([len(PROMPTS[0])])
    before = generate_answers(adapted, "test", [0], lengths, batch_size=1, decoding=GREEDY)
    before = before.texts[0]
    second = VOCABULARY.index(before.split()[1])
    head = adapted.model.lm_head.weight.data
    head[[1, second]] = head[[second, 1]].clone()  # what was the second token now ends the answer
    found = generate_answers(adapted, "test", [0], lengths, batch_size=1, decoding=GREEDY)
    assert found.texts == [before.split()[0]]
    assert found.cut_short == [False]


def test_batches_start_with_the_longest_prompts_and_cover_each_row_once():
    batches = [batch.tolist() for batch in batches_by_length(np.array([5, 2, 7, 3, 2]), 2, "x")]
    assert batches == [[2, 0], [3, 1], [4]]


TITLES = ["Blue", "Blue Train", "Giant  Steps", "Ágætis"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Blue", 0),
        ("blue TRAIN", 1),
        (" giant\tsteps ", 2),
        ("ÁGÆTIS", 3),
        ("Blue Trai", None),
        ("Blue Train.", 1),
        ("Blue Train .!", 1),
        (".Blue Train", None),
        ("A\u0301gætis", 3),  # decomposed
        ("\uff22lue", 0),  # full width
        ("...", None),
        ("Blue Train, Blue", None),
        ("the answer is Blue", None),
        ("", None),
    ],
)
def test_an_answer_is_valid_when_it_is_exactly_one_title(text, index):
    assert parse_answer(text, TITLES) == index


def test_an_answer_that_two_candidates_share_is_ambiguous():
    assert parse_answer("BLUE", ["Blue", "blue ", "Red"]) is None
    assert parse_answer("blue", ["blue", "blue ", "Red"]) is None
    assert parse_answer("red", ["Blue", "blue ", "Red"]) == 2


def test_an_exact_answer_is_never_confused_with_a_title_of_other_case():
    titles = ["Slot", "SLOT", "slot"]  # LastFM has eleven such groups of artists
    assert [parse_answer(title, titles) for title in titles] == [0, 1, 2]
    assert parse_answer("sLOT", titles) is None


def test_an_exact_answer_is_never_confused_with_a_title_of_other_punctuation():
    titles = ["Help!", "Help", "Help?", "!!!", "..."]
    assert [parse_answer(title, titles) for title in titles] == [0, 1, 2, 3, 4]
    assert parse_answer("Help.", titles) is None  # which of the three is not known
    assert parse_answer("\uff2eeo", ["\uff2eeo", "Neo"]) == 0
    assert parse_answer("Neo", ["\uff2eeo", "Neo"]) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Written("blue"), None),
        (Written("blue", cut_short=True), None),
        (Written(""), "empty"),
        (Written("", cut_short=True), "empty"),
        (Written("red"), "ambiguous"),
        (Written("Blue Tra", cut_short=True), "cut short"),
        (Written("Blue Tra"), "not a candidate"),
    ],
)
def test_an_invalid_answer_is_of_one_kind(answer, kind):
    assert invalid_kind(answer, ["Blue", "Red", "RED", "Blue Train"]) == kind


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
