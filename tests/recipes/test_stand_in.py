import json

import numpy as np
import pytest
import torch

from recipes.experiment import StandInConfig
from recipes.llm.lessons import subword_lessons
from recipes.llm.loading import load_language_model
from recipes.llm.stand_in import StandIn, make_stand_in
from recipes.llm.stand_in_tokenizer import new_tokenizer
from recipes.prompting.collator import prompt_batch
from recipes.prompting.encoding import encode_answers, encode_prompts

TITLES = ["red fox", "red owl", "blue fox", "blue owl", "green fox", "green owl"]
CONFIG = StandInConfig(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=64,
    max_steps=150,
    batch_size=16,
    learning_rate=1e-2,
)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-in")
    plan = StandIn(CONFIG, "subword", 1, 3, TITLES, train=None)
    make_stand_in(
        plan,
        folder=folder,
        checkpoints=folder / "checkpoints-x",
        logging_steps=10,
        save_steps=100,
    )
    return folder


def test_it_learns_to_answer_with_a_title_in_full(stand_in):
    llm, tokenizer = load_language_model(str(stand_in), "fp32")
    random = np.random.default_rng(9)
    candidates = random.random((60, 6)).argsort(axis=1)[:, :3]
    prompts = encode_prompts(tokenizer, TITLES, random.integers(6, size=(60, 1)), candidates)
    batch = prompt_batch(prompts, np.arange(60), tokenizer.pad_token_id)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    output = llm.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    answers = [text.strip() for text in texts]
    assert np.mean([answer in TITLES for answer in answers]) > 0.9


def test_it_is_labelled_as_a_stand_in_and_leaves_no_checkpoints(stand_in):
    assert json.loads((stand_in / "stand_in.json").read_text())["stand_in"] is True
    names = {path.name for path in stand_in.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "loss.json"} <= names
    assert not any(name.startswith("checkpoints") for name in names)
    assert not list(stand_in.rglob("*.bin")) and not list(stand_in.rglob("*.pt"))


def test_its_loss_falls(stand_in):
    curve = json.loads((stand_in / "loss.json").read_text())
    assert [entry["step"] for entry in curve] == list(range(10, 151, 10))
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]


def test_a_loaded_tokenizer_gives_the_same_tokens(stand_in):
    _, loaded = load_language_model(str(stand_in), "fp32")
    made = new_tokenizer(TITLES, CONFIG.vocab_size)
    assert encode_answers(loaded, TITLES).values.tolist() == (
        encode_answers(made, TITLES).values.tolist()
    )
    assert loaded.padding_side == "left"


def test_a_frequent_word_is_one_token():
    tokenizer = new_tokenizer(TITLES, 1000)
    assert tokenizer.tokenize(" green owl; red fox") == ["Ġgreen", "Ġowl", ";", "Ġred", "Ġfox"]


def test_the_tokenizer_writes_any_title():
    tokenizer = new_tokenizer(TITLES, 1000)
    ids = tokenizer(" Sigur Rós – 日本", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == " Sigur Rós – 日本"


def test_a_vocabulary_too_small_for_all_bytes_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size=200 must be at least 260"):
        new_tokenizer(TITLES, 200)


def test_a_lesson_answers_with_all_candidates_in_random_order_without_preference():
    config = StandInConfig(max_steps=50, batch_size=40)
    tokenizer = new_tokenizer(TITLES, 1000)
    lessons = subword_lessons(config, TITLES, prompt_history=2, num_candidates=3).kinds[0]
    answers = encode_answers(tokenizer, TITLES)
    item_of = {tuple(answers.row(item)): item for item in range(len(TITLES))}
    assert set(answers.lengths.tolist()) == {3}  # two words and eos
    first = np.zeros((6, 3))
    for row in range(2000):
        options = [item for item in lessons.prompts.slot_items.row(row) if item >= 0][:3]
        ids = lessons.answers.row(row)
        answered = [item_of[tuple(ids[i : i + 3])] for i in range(0, len(ids), 3)]
        assert sorted(answered) == sorted(set(options))
        first[answered[0], options.index(answered[0])] += 1
    # 2000 first answers over 6 items and 3 places: 111 each, standard deviation 10
    assert first.min() > 70 and first.max() < 152


def test_histories_of_lessons_have_every_length():
    config = StandInConfig(max_steps=5, batch_size=20)
    lessons = subword_lessons(config, TITLES, prompt_history=3, num_candidates=2).kinds[0]
    slots = lessons.prompts.slot_items
    shown = {sum(item >= 0 for item in slots.row(row)) - 2 for row in range(100)}
    assert shown == {1, 2, 3}


def test_lessons_of_a_large_catalogue_have_distinct_candidates():
    titles = [f"title {number}" for number in range(60)]
    config = StandInConfig(max_steps=20, batch_size=20)
    lessons = subword_lessons(config, titles, prompt_history=1, num_candidates=10).kinds[0]
    for row in range(400):
        options = [item for item in lessons.prompts.slot_items.row(row) if item >= 0][:10]
        assert len(set(options)) == 10


def test_an_unknown_language_model_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapt.llm=.*could not be loaded"):
        load_language_model(str(tmp_path / "nothing"), "fp32")


def test_bf16_loads_half_precision_weights_frozen(stand_in):
    llm, _ = load_language_model(str(stand_in), "bf16")
    assert {parameter.dtype for parameter in llm.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in llm.parameters())
