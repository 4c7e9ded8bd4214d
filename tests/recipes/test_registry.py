import pytest

from recipes.registry import Registry, UnknownNameError


class Entry:
    def __init__(self, name: str, summary: str = "one line") -> None:
        self.name, self.summary = name, summary


FIRST, SECOND = Entry("zebra"), Entry("ant")
ANIMALS = Registry("animal", FIRST, SECOND)


def test_entries_are_found_by_name_in_the_order_in_which_they_are_listed() -> None:
    assert list(ANIMALS) == ["zebra", "ant"]
    assert list(ANIMALS.values()) == [FIRST, SECOND]
    assert ANIMALS["ant"] is SECOND
    assert len(ANIMALS) == 2
    assert "ant" in ANIMALS
    assert "bee" not in ANIMALS
    assert ANIMALS.get("bee") is None


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there is no animal 'bee'; known are zebra, ant") as found:
        ANIMALS["bee"]
    # In one line without a KeyError's quotation marks.
    assert str(found.value) == "there is no animal 'bee'; known are zebra, ant"
    assert isinstance(found.value, UnknownNameError)
    assert isinstance(found.value, KeyError)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two entries of the animal registry have the same name"):
        Registry("animal", FIRST, SECOND, Entry("zebra"))
