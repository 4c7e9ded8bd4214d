import pytest

from recipes.prompting.prompts import SLOT, USER_SLOT, hybrid_prompt, one_line_titles, text_prompt


def test_a_hybrid_prompt_has_a_slot_after_each_title():
    assert hybrid_prompt(["Heat", "Big"], ["Alien", "Jaws"]) == (
        "Pick the next one from: Alien\ue000; Jaws\ue000\n"
        "Chosen so far, oldest first: Heat\ue000; Big\ue000\n"
        "Next:"
    )


def test_a_text_prompt_is_the_same_prompt_without_slots():
    assert text_prompt(["Heat", "Big"], ["Alien", "Jaws"]) == (
        "Pick the next one from: Alien; Jaws\nChosen so far, oldest first: Heat; Big\nNext:"
    )


def test_the_user_slot_stands_in_front_of_the_cue():
    assert hybrid_prompt(["Heat"], ["Alien"], user_slot=True) == (
        "Pick the next one from: Alien\ue000\nChosen so far, oldest first: Heat\ue000\n\ue001Next:"
    )


def test_an_empty_history_leaves_its_line_empty():
    assert text_prompt([], ["Alien"]) == (
        "Pick the next one from: Alien\nChosen so far, oldest first:\nNext:"
    )


def test_a_prompt_without_candidates_speaks_of_none():
    assert text_prompt(["Heat", "Big"], []) == "Chosen so far, oldest first: Heat; Big\nNext:"


@pytest.mark.parametrize("character", [SLOT, USER_SLOT])
def test_a_title_with_a_slot_character_is_refused_by_item(character):
    with pytest.raises(ValueError, match="of item 1 contains a private-use character"):
        one_line_titles(["Heat", f"Big{character}"])
