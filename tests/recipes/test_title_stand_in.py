"""The stand-in with one token a title: its tokenizer, what it knows, and from where."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recipes.data.tables import PreparedData, Split
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
    SyntheticConfig,
)
from recipes.llm.lessons import QUESTIONS, title_lessons, title_tokens
from recipes.llm.loading import load_language_model
from recipes.llm.stand_in import StandIn, make_stand_in
from recipes.llm.title_tokenizer import new_title_tokenizer
from recipes.llm.title_vectors import co_occurrences, positive_information, title_vectors
from recipes.pipeline import Pipeline
from recipes.prompting.collator import IGNORED, prompt_batch
from recipes.prompting.encoding import NO_SLOT, USER, encode_answers, encode_prompts
from recipes.prompting.prompts import text_prompt
from recipes.prompting.written import written_titles

NASTY = [
    "red fox",
    "</s>",
    "Next:",
    "; a; b",
    "Pick the next one from: x",
    "red fox",
    "#3:",
    "<unk>",
    "m",
    "日本 é",
    "a\u2581b",
    "don ' t",
]


def windows(rows: list[tuple[list[int], int]], width: int = 3) -> Split:
    histories = np.array([[-1] * (width - len(history)) + history for history, _ in rows])
    lengths = (histories >= 0).sum(axis=1)
    targets = np.array([target for _, target in rows])
    users = np.zeros(len(rows), np.int64)
    return Split(users, histories, lengths, targets, targets[:, None], users > 0)


def test_every_title_is_one_token_which_decodes_to_it_exactly():
    tokenizer = new_title_tokenizer(NASTY, 20)
    answers = encode_answers(tokenizer, NASTY)
    assert answers.lengths.tolist() == [2] * len(NASTY)
    tokens = title_tokens(tokenizer, NASTY)
    assert len(set(tokens.tolist())) == len(NASTY) - 1  # two items of one title share its token
    assert tokens[0] == tokens[5] and not set(tokens) & set(tokenizer.all_special_ids)
    assert [tokenizer.decode(answers.row(item)[:1]) for item in range(len(NASTY))] == NASTY
    assert written_titles(tokenizer, [answers.row(item) for item in range(len(NASTY))]) == NASTY


def test_titles_are_one_line_and_blank_ones_are_refused():
    assert new_title_tokenizer([" two \n blanks "], 2).convert_tokens_to_ids(" two blanks") > 3
    with pytest.raises(ValueError, match="the title of item 1 is blank: give every item a title"):
        new_title_tokenizer(["a", " "], 2)


@pytest.mark.parametrize("user_slot", [False, True])
def test_a_prompt_has_the_same_tokens_in_any_length_and_with_a_user_slot(user_slot):
    tokenizer = new_title_tokenizer(NASTY, 20)
    histories = np.array([[1, 2], [-1, 7], [-1, -1]])
    candidates = np.array([[3, 4, 8]] * 3)
    prompts = encode_prompts(tokenizer, NASTY, histories, candidates, user_slot=user_slot)
    for row, history in enumerate([[1, 2], [7], []]):
        ids = prompts.input_ids.row(row)
        assert len(ids) == 5 + 2 * (3 + len(history)) + user_slot
        slots = [item for item in prompts.slot_items.row(row) if item >= 0]
        assert slots == [3, 4, 8, *history]
        shown = prompts.slot_items.row(row)
        tokens = [ids[place - 1] for place, item in enumerate(shown) if item >= 0]
        assert tokens == title_tokens(tokenizer, NASTY)[slots].tolist()
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == "Next:"


def test_a_prompt_without_slots_is_the_hybrid_one_without_those_of_titles():
    tokenizer = new_title_tokenizer(NASTY, 20)
    rows = np.array([[1, 2], [-1, 7]]), np.array([[3, 4, 8]] * 2)
    hybrid = encode_prompts(tokenizer, NASTY, *rows, user_slot=True)
    text = encode_prompts(tokenizer, NASTY, *rows, user_slot=True, slots=False)
    for row in range(2):
        ids, slots = hybrid.input_ids.row(row), hybrid.slot_items.row(row)
        kept = [token for token, slot in zip(ids, slots, strict=True) if slot < 0]
        assert text.input_ids.row(row) == kept
        assert sorted(text.slot_items.row(row)) == [USER] + [NO_SLOT] * (len(kept) - 1)


def test_co_occurrences_count_targets_with_the_items_before_them():
    train = windows([([0], 1), ([0, 1], 2), ([2], 2)])
    counts = co_occurrences(train, np.arange(4)).toarray()
    wanted = np.zeros((4, 4))
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        wanted[one, other] = wanted[other, one] = 1
    assert np.array_equal(counts, wanted)
    one_title = co_occurrences(train, np.array([0, 0, 1, 2])).toarray()  # items 0 and 1 share it
    assert one_title.tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]


def test_information_is_the_logarithm_of_observed_over_expected_where_it_is_positive():
    train = windows([([0], 1), ([0], 1), ([2], 3), ([1], 2)])
    found = positive_information(co_occurrences(train, np.arange(4))).toarray()
    # of 8 counts: marginals 2, 3, 2, 1; pairs 0-1: 2, 2-3: 1, 1-2: 1
    assert found[0, 1] == pytest.approx(np.log(2 * 8 / (2 * 3)))
    assert found[2, 3] == pytest.approx(np.log(1 * 8 / (2 * 1)))
    assert found[1, 2] == pytest.approx(np.log(1 * 8 / (3 * 2)))
    assert (found == found.T).all() and found[0, 2] == 0
    # 0-1 and 2-3 always, 1-2 once in nine: less than by chance
    often = windows([([0], 1)] * 4 + [([2], 3)] * 4 + [([1], 2)])
    assert positive_information(co_occurrences(often, np.arange(4))).toarray()[1, 2] == 0


def test_vectors_of_titles_chosen_together_are_near_each_other_and_the_same_each_time():
    rows = [([a], b) for group in (range(5), range(5, 10)) for a in group for b in group if a != b]
    train = windows(rows)
    kinds = np.arange(11)  # the last title is never chosen
    found = title_vectors(train, kinds, 4, seed=0)
    assert np.array_equal(found, title_vectors(train, kinds, 4, seed=0))
    assert not found[10].any()
    assert np.linalg.norm(found[:10], axis=1) == pytest.approx(np.ones(10))
    cosines = found[:10] @ found[:10].T
    together = np.kron(np.eye(2), np.ones((5, 5))).astype(bool)
    assert cosines[together].min() > 0.3 > np.abs(cosines[~together]).max()


@pytest.mark.parametrize("titles", [1, 2, 3])
def test_a_catalogue_smaller_than_the_width_has_vectors_too(titles):
    found = title_vectors(windows([([0], titles - 1)]), np.arange(titles), 8, seed=0)
    assert found.shape == (titles, 8) and np.isfinite(found).all()


CONFIG = StandInConfig(
    hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_steps=150, batch_size=16
)
TITLES = [f"title {number}" for number in range(12)]
CHAIN = windows([([i], (i + 1) % 12) for i in range(12)] * 3)


def test_lessons_take_turns_and_ask_for_the_candidate_at_a_place():
    lessons = title_lessons(CONFIG, TITLES, CHAIN, prompt_history=2, num_candidates=3)
    tokenizer, batch_size = lessons.tokenizer, CONFIG.batch_size
    tokens = title_tokens(tokenizer, TITLES)
    for step in range(12):
        batch = lessons(range(step * batch_size, (step + 1) * batch_size))
        texts = tokenizer.batch_decode(batch["input_ids"])
        assert all(("Next:" in text) == (step % 2 == 1) for text in texts)
    batch = lessons(range(3 * batch_size, 4 * batch_size))  # plain text
    asked = min(QUESTIONS, 3)
    assert batch["labels"].shape == (batch_size, 2 + 3 * asked)
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        start = ids.index(tokenizer.bos_token_id)
        candidates = ids[start + 2 : start + 5]
        assert set(candidates) <= set(tokens.tolist())
        answer = ids[-len(labels) :]
        assert labels[0] in candidates and labels[1] == tokenizer.eos_token_id
        for place in range(2, len(labels), 3):
            k = int(tokenizer.convert_ids_to_tokens(answer[place])[2:-1])
            assert labels[place : place + 3] == [
                IGNORED,
                candidates[k - 1],
                tokenizer.eos_token_id,
            ]


def test_next_item_lessons_are_train_windows():
    lessons = title_lessons(CONFIG, TITLES, CHAIN, prompt_history=2, num_candidates=3)
    tokens = title_tokens(lessons.tokenizer, TITLES).tolist()
    labels = lessons(range(CONFIG.batch_size))["labels"]
    for one, other in labels.tolist():
        assert (tokens.index(one) + 1) % 12 == tokens.index(other)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-in")
    plan = StandIn(CONFIG, "token", 2, 3, TITLES, CHAIN)
    make_stand_in(plan, folder=folder, checkpoints=folder / "x", logging_steps=10, save_steps=500)
    return load_language_model(str(folder), "fp32")


def test_train_windows_without_any_history_are_refused_by_name():
    alone = windows([([], 0), ([], 1)])
    with pytest.raises(ValueError, match=r"no train window has a history.*titles subword"):
        title_lessons(StandInConfig(), TITLES, alone, prompt_history=2, num_candidates=2)


@pytest.mark.parametrize("slots", [False, True])
def test_it_answers_with_a_candidate_without_preference(made, slots):
    llm, tokenizer = made
    random = np.random.default_rng(9)
    candidates = random.random((200, 12)).argsort(axis=1)[:, :3]
    histories = random.integers(12, size=(200, 2))
    prompts = encode_prompts(tokenizer, TITLES, histories, candidates, slots=slots)
    batch = prompt_batch(prompts, np.arange(200), tokenizer.pad_token_id)
    with torch.no_grad():
        logits = llm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    shares = logits[:, -1].softmax(dim=-1).numpy()
    of_candidates = np.take_along_axis(shares, title_tokens(tokenizer, TITLES)[candidates], axis=1)
    assert of_candidates.sum(axis=1).mean() > 0.6  # 0.25 by chance


def test_it_has_learned_what_follows_what(made):
    llm, tokenizer = made
    tokens = title_tokens(tokenizer, TITLES)
    opening = [tokenizer.bos_token_id, *tokenizer("\nChosen so far, oldest first:").input_ids]
    ids = torch.tensor([[*opening[-2:], token] for token in tokens.tolist()])
    with torch.no_grad():
        chosen = llm(input_ids=ids).logits[:, -1].argmax(dim=-1)
    assert chosen.tolist() == np.roll(tokens, -1).tolist()


def experiment(out, **stand_in) -> Experiment:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    return Experiment(
        out=str(out),
        prepare=PrepareConfig(
            protocol="chronological", num_candidates=5, synthetic=SyntheticConfig(num_users=40)
        ),
        recommender=RecommenderConfig(hidden_size=8, num_layers=1, max_epochs=1),
        evaluate=EvaluateConfig(rows="last", ks=[1]),
        adapt=AdaptConfig(
            methods=["lora"],
            prompt_history=1,
            stand_in=StandInConfig(**sizes, max_steps=3, batch_size=4, **stand_in),
        ),
    )


def test_it_reads_train_interactions_alone(tmp_path):
    """Other validation and test rows leave it as it is to the last bit; train rows do not."""
    first = Pipeline.of(experiment(tmp_path / "one", titles="token"))
    first.prepare()
    first.run.make_stand_in()
    splits = dict(first.run.data.splits)
    for name in ("val", "test"):
        split = splits[name]
        splits[name] = replace(
            split, targets=split.targets[::-1].copy(), histories=split.histories[::-1].copy()
        )
    again = Pipeline.of(experiment(tmp_path / "two", titles="token"))
    again.prepare()
    titles = first.run.data.titles
    vars(again.run)["data"] = PreparedData(titles, splits, again.run.prepare_folder)
    assert again.run._stand_in.fingerprint == first.run._stand_in.fingerprint
    again.run.make_stand_in()
    assert again.run.llm_content == first.run.llm_content
    name = "model.safetensors"
    folders = again.run.stand_in_folder, first.run.stand_in_folder
    assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()

    train = splits["train"]
    splits["train"] = replace(train, targets=train.targets[::-1].copy())
    other = Pipeline.of(experiment(tmp_path / "two", titles="token"))
    vars(other.run)["data"] = PreparedData(titles, splits, again.run.prepare_folder)
    assert other.run._stand_in.fingerprint != first.run._stand_in.fingerprint


def test_real_data_have_titles_as_tokens_and_the_unadapted_model_beside(tmp_path):
    made_up = Pipeline.of(experiment(tmp_path))
    assert made_up.run.stand_in_form == "subword"
    assert "zero-shot" not in [arm.name for arm in made_up.arms]
    real = experiment(tmp_path)
    real = replace(real, prepare=PrepareConfig(dataset="lastfm", protocol="chronological"))
    found = Pipeline.of(real)
    assert found.run.stand_in_form == "token"
    assert "zero-shot" in [arm.name for arm in found.arms]
    without = replace(real, adapt=replace(real.adapt, methods=["sasrec"]))
    assert "zero-shot" not in [arm.name for arm in Pipeline.of(without).arms]


def test_text_prompts_are_what_encode_prompts_leaves_without_slots():
    tokenizer = new_title_tokenizer(TITLES, 3)
    prompts = encode_prompts(tokenizer, TITLES, np.array([[4]]), np.array([[0, 1]]), slots=False)
    pieces = tokenizer.convert_ids_to_tokens(prompts.input_ids.row(0))
    shown = "".join(pieces[1:])
    assert shown == text_prompt(["title 4"], ["title 0", "title 1"]).replace(";", "")
