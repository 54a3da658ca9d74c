"""Numbers and entries listed as text, and names that must be one of several."""

import pytest

from ipadapter_core.errors import BadInputError, one_of
from ipadapter_core.numbers import entries, parse_numbers


@pytest.mark.parametrize("text", ["1, .5,-2e-1", "1;0.5;-0.2", "1 0.5\n-0.2", " 1,\n 0.5 ;, -.2 ,"])
def test_separators(text: str) -> None:
    assert parse_numbers(text, "weights") == [1.0, 0.5, -0.2]


@pytest.mark.parametrize("text", ["", " ,;\n"])
def test_nothing_is_an_empty_list(text: str) -> None:
    assert parse_numbers(text, "weights") == []


@pytest.mark.parametrize("text", ["1, one", "nan", "1, inf", "1: 2"])
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(BadInputError, match=rf"Found: weights '{text}'.*separated by commas, such as '1, 0.5'"):
        parse_numbers(text, "weights")


def test_an_entry_may_hold_spaces() -> None:
    assert entries(" 3 : 1,4-9: 0;\n\n a b ,") == ["3 : 1", "4-9: 0", "a b"]


def test_a_known_name_gives_its_value() -> None:
    assert one_of("b", {"a": 1, "b": 2}, "letter") == 2
    assert one_of("b", ("a", "b"), "letter") == "b"


@pytest.mark.parametrize("known", [{"a": 1, "b": 2}, ("a", "b")])
def test_an_unknown_name_is_named_with_those_that_are_known(known: dict | tuple) -> None:
    with pytest.raises(BadInputError) as raised:
        one_of("c", known, "letter")
    assert str(raised.value) == "Found: letter 'c'. Expected: one of a, b. What to do: choose one of them."
