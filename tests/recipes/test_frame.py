import numpy as np
import pytest
from tokenizers import AddedToken

from recipes.data.padding import PADDING
from recipes.prompting.collator import IGNORED, TrainingCollator
from recipes.prompting.encoding import NO_SLOT, USER, encode_answers, encode_prompts
from recipes.prompting.frame import INSTRUCTION, OPEN_INSTRUCTION, Frame, frame_of
from recipes.prompting.prompts import text_prompt
from recipes.prompting.written import written_texts, written_titles
from tests.recipes.tokenizers_of_all_kinds import byte_level, legacy_llama, unigram

TITLES = ["Heat (1995)", "Toy Story (1995)", "<|im_end|> of Days (1999)", "Fargo (1996)"]
TURNS = ["<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are Heat.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + 'Chosen ' + m['content'].strip() + ' Next:' }}"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system turn') }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
DATED = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.first %}Today is {{ strftime_now('%d %B %Y') }}.\n{% endif %}"
    "{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>\n{% endif %}"
    "{% endif %}"
)
SILENT = "{% for m in messages %}{{ m['role'] }}{% endfor %}"


def with_turns(tokenizer, template):
    """The tokenizer with a chat template and two tokens of its own for it."""
    turns = [AddedToken(turn, special=True, normalized=False) for turn in TURNS]
    tokenizer.add_special_tokens({"additional_special_tokens": turns})
    tokenizer.chat_template = template
    return tokenizer


def first_prompt(tokenizer, frame, **options):
    histories, candidates = np.array([[PADDING, 1]]), np.array([[0, 2, 3]])
    return encode_prompts(tokenizer, TITLES, histories, candidates, frame=frame, **options)


def test_without_a_chat_template_the_frame_is_bos_and_eos() -> None:
    tokenizer = byte_level(TITLES)
    unknown = tokenizer.unk_token_id
    wanted = Frame([tokenizer.bos_token_id], [], tokenizer.eos_token_id, None, unknown)
    assert frame_of(tokenizer, "auto") == frame_of(tokenizer) == wanted


def test_a_chat_template_can_be_left_alone() -> None:
    tokenizer = with_turns(byte_level(TITLES), CHATML)
    assert frame_of(tokenizer, "none") == frame_of(byte_level(TITLES))


@pytest.mark.parametrize("template", [CHATML, DATED])
def test_the_prompt_is_the_users_turn_after_a_system_turn(template) -> None:
    tokenizer = with_turns(byte_level(TITLES), template)
    frame = frame_of(tokenizer, "auto")
    ids = first_prompt(tokenizer, frame, slots=False).input_ids.row(0)
    text = text_prompt([TITLES[1]], [TITLES[0], TITLES[2], TITLES[3]])
    chat = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
    wanted = tokenizer.apply_chat_template(
        chat,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        chat_template=template.replace("{{ strftime_now('%d %B %Y') }}", "01 Jan 2026"),
    )
    assert tokenizer.decode(ids) == wanted
    assert wanted.count("01 Jan 2026") == (template == DATED)
    assert ids.count(tokenizer.bos_token_id) == (template == DATED)
    start, end = tokenizer.convert_tokens_to_ids(TURNS)
    # Two ends of turns: the one that a title spells is plain text.
    assert ids.count(start) == 3 and ids.count(end) == 2
    assert frame.end == end and frame.lead == ""


@pytest.mark.parametrize("make", [byte_level, legacy_llama, unigram])
def test_a_template_without_system_turn_has_one_bos_and_ends_with_eos(make) -> None:
    tokenizer = with_turns(make(TITLES), INST)
    frame = frame_of(tokenizer, "auto")
    ids = first_prompt(tokenizer, frame).input_ids.row(0)
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "").startswith("ChosenPick")
    assert tokenizer.decode(ids).replace(" ", "").endswith("Next:Next:")
    assert frame.end == tokenizer.eos_token_id
    assert frame.lead == frame_of(tokenizer).lead


def test_a_prompt_without_candidates_has_a_system_turn_without_a_list() -> None:
    tokenizer = with_turns(byte_level([*TITLES, INSTRUCTION, OPEN_INSTRUCTION]), CHATML)
    frames = [frame_of(tokenizer, "auto", listed=listed) for listed in (True, False)]
    first, second = (tokenizer.decode(frame.opening) for frame in frames)
    assert INSTRUCTION in first and OPEN_INSTRUCTION in second
    assert second == first.replace(INSTRUCTION, OPEN_INSTRUCTION)
    assert frames[0].closing == frames[1].closing and frames[0].end == frames[1].end


def test_slots_stand_where_they_stood_within_the_turn() -> None:
    tokenizer = with_turns(byte_level(TITLES), CHATML)
    frame, plain = frame_of(tokenizer, "auto"), frame_of(tokenizer)
    inside, alone = (first_prompt(tokenizer, one, user_slot=True) for one in (frame, plain))
    slots, own = inside.slot_items.row(0), alone.slot_items.row(0)
    opening, closing = len(frame.opening), len(frame.closing)
    assert slots == [NO_SLOT] * opening + own[1:] + [NO_SLOT] * closing
    assert [one for one in slots if one != NO_SLOT] == [0, 2, 3, 1, USER]
    only = first_prompt(tokenizer, frame, user_slot=True, slots=False).slot_items.row(0)
    assert [one for one in only if one != NO_SLOT] == [USER]


@pytest.mark.parametrize("template", [CHATML, INST, DATED])
def test_the_labels_are_the_assistants_turn_alone(template) -> None:
    tokenizer = with_turns(byte_level(TITLES), template)
    frame = frame_of(tokenizer, "auto")
    answers = encode_answers(tokenizer, TITLES, frame=frame)
    rows = np.zeros(len(TITLES), np.int64)
    collator = TrainingCollator(
        first_prompt(tokenizer, frame), answers, rows, np.arange(len(TITLES)), pad_id=3
    )
    batch = collator(range(len(TITLES)))
    prompt = first_prompt(tokenizer, frame).input_ids.row(0)
    for item, title in enumerate(TITLES):
        labels = [one for one in batch["labels"][item].tolist() if one != IGNORED]
        ids = batch["input_ids"][item][batch["attention_mask"][item].bool()].tolist()
        assert ids == prompt + labels
        assert labels[-1] == frame.end and frame.end not in labels[:-1]
        assert tokenizer.decode(labels[:-1]).strip() == title


def test_an_answer_ends_with_the_turn_where_that_is_not_eos() -> None:
    tokenizer = with_turns(byte_level(TITLES), CHATML)
    frame = frame_of(tokenizer, "auto")
    assert frame.end != tokenizer.eos_token_id
    ids = encode_answers(tokenizer, TITLES, frame=frame).row(1)
    more = tokenizer("or Heat", add_special_tokens=False)["input_ids"]
    assert written_texts(tokenizer, [[*ids, *more]], frame.end) == [TITLES[1]]
    rows = [encode_answers(tokenizer, TITLES, frame=frame).row(item) for item in range(4)]
    assert written_titles(tokenizer, rows, frame.end) == TITLES


def test_an_unfilled_slot_of_a_chat_is_a_new_line_and_never_ends_a_document() -> None:
    tokenizer = with_turns(byte_level(TITLES), CHATML)
    frame = frame_of(tokenizer, "auto")
    assert tokenizer.decode([frame.placeholder]) == "\n"
    prompts = first_prompt(tokenizer, frame, user_slot=True)
    ids, slots = (np.array(one.row(0)) for one in (prompts.input_ids, prompts.slot_items))
    assert set(ids[slots != NO_SLOT]) == {frame.placeholder}
    assert frame_of(with_turns(unigram(TITLES), CHATML), "auto").placeholder == 0  # it has none


@pytest.mark.parametrize(
    "names",
    [
        {"unk_token": "</s>"},  # as OPT and GPT-2 have it
        {"unk_token": "<|im_start|>", "pad_token": "</s>"},  # SmolLM2: one more such token
        {"unk_token": None},  # Qwen: pad is what ended documents before the chats
        {"unk_token": None, "pad_token": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("chat_template", ["auto", "none"])
def test_without_a_token_for_unknown_text_a_slot_is_a_new_line(names, chat_template) -> None:
    tokenizer = with_turns(byte_level(TITLES), CHATML)
    for name, token in names.items():
        setattr(tokenizer, name, token)
    assert tokenizer.decode([frame_of(tokenizer, chat_template).placeholder]) == "\n"
    named = with_turns(byte_level(TITLES), CHATML)
    assert frame_of(named).placeholder == named.unk_token_id


def test_a_template_that_hides_what_the_user_says_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not write what a user says: set adapt.chat_templ"):
        frame_of(with_turns(byte_level(TITLES), SILENT), "auto")


@pytest.mark.parametrize(
    ("stumbling", "why"),
    [
        ("{{ 1 + messages[0]['content'] }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError: integer division"),
        ("{{ messages[0]['content'].index('no') }}", "ValueError: substring not found"),
        ("{% for m in messages %}{{ m['content'] }}", "TemplateSyntaxError: Unexpected end"),
        (
            {"tool_use": CHATML},
            "ValueError: .* multiple chat templates",
        ),
    ],
)
def test_a_template_that_stumbles_is_refused_with_the_reason(stumbling, why) -> None:
    said = rf"does not write what a user says \({why}.*\): set adapt.chat_template none"
    with pytest.raises(ValueError, match=said):
        frame_of(with_turns(byte_level(TITLES), stumbling), "auto")


def test_of_several_templates_the_default_is_taken_also_with_tokens_on_disk(tmp_path) -> None:
    several = with_turns(byte_level(TITLES), {"default": CHATML, "tool_use": SILENT})
    one = with_turns(byte_level(TITLES), CHATML)
    assert frame_of(several, "auto", tmp_path) == frame_of(one, "auto")


def test_a_system_turn_that_would_stand_after_the_prompt_is_left_out() -> None:
    turns = "{% for m in messages | reverse %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    tokenizer = with_turns(byte_level(TITLES), turns)
    frame = frame_of(tokenizer, "auto")
    assert tokenizer.decode([*frame.opening, *frame.closing]) == "<s>user: "
