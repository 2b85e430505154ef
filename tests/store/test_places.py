"""Numbers of texts in a small table against a dict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.store.places import Places

TEXTS = st.text(max_size=4)


@given(st.lists(st.tuples(TEXTS, st.integers(0, 2**62), st.booleans())), st.lists(TEXTS))
def test_as_a_dict(written, asked):
    places, expected = Places(), {}
    for text, number, gently in written:
        if gently:
            assert places.setdefault(text, number) == expected.setdefault(text, number)
        else:
            places[text] = expected[text] = number
    assert len(places) == len(expected)
    for text in [*asked, *expected]:
        assert places.get(text) == expected.get(text)
        assert (text in places) == (text in expected)


def test_what_is_not_there_is_a_key_error_and_halves_of_characters_are_texts():
    places = Places()
    with pytest.raises(KeyError, match="nothing"):
        places["nothing"]
    places["\ud800"] = 3
    assert places["\ud800"] == 3
    assert 3 not in places
