"""The rows between phases, as people really write them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config import UsageError
from utils.store.jsonlines import read_rows
from utils.store.rows import Passage, Question


@pytest.fixture
def read(tmp_path):
    """Return a function that reads one row of a file with the given line."""

    def read(line, model=Question):
        (tmp_path / "rows.jsonl").write_text(line, encoding="utf-8")
        return read_rows(tmp_path / "rows.jsonl", model)[0]

    return read


def answers(read, written):
    return read(f'{{"id": 1, "question": "who?", "golden_answers": {written}}}').golden_answers


@pytest.mark.parametrize(
    "written",
    [
        '["Bob", "Bobby"]',
        r'"[\"Bob\", \"Bobby\"]"',
        "\"['Bob', 'Bobby']\"",
        "\"('Bob', 'Bobby')\"",
        r'["[\"Bob\", \"Bobby\"]"]',
        '["Bob", "", " ", null, "Bobby"]',
        r'" [ \"Bob\",\n \"Bobby\" ] "',
    ],
)
def test_the_answers_of_a_list_are_read_however_it_is_written(read, written):
    assert answers(read, written) == ["Bob", "Bobby"]


@pytest.mark.parametrize(
    "text", ["[sic] Bob", "(1999)", '("Heroes")', "[citation needed]", "{x}", "f(x) = [x]", '"Heroes"']
)
def test_a_text_with_brackets_is_one_answer(read, text):
    assert answers(read, json.dumps(text)) == [text]
    assert answers(read, json.dumps([text])) == [text]


@pytest.mark.parametrize(
    "written", ["\"['Bob' 'Bobby']\"", "\"['Bob', Bobby]\"", '"[\'Bob"]', '"[]"', "[]", '[" ", null]', '""']
)
def test_what_only_looks_like_a_list_or_holds_no_answer_is_refused(read, written):
    with pytest.raises(UsageError, match="golden_answers|not valid JSON"):
        answers(read, written)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
def test_a_list_inside_a_string_is_read_as_the_list(found):
    row = {"id": "1", "question": "who?"}
    expected = Question.model_validate(row | {"golden_answers": found}).golden_answers
    assert Question.model_validate(row | {"golden_answers": repr(found)}).golden_answers == expected
    assert Question.model_validate(row | {"golden_answers": json.dumps(found)}).golden_answers == expected


@pytest.mark.parametrize(
    "number", ["1969", "3.50", "-0.0", "1e5", "18446744073709551616", "123456789012345678901234567890", "0.1000"]
)
def test_numbers_stay_as_they_are_written(read, number):
    row = read(
        f'{{"id": {number}, "question": "how many?", "golden_answers": [{number}, "x"], "metadata": {{"p": 0.5}}}}'
    )
    assert (row.id, row.golden_answers, row.metadata) == (number, [number, "x"], {"p": 0.5})
    assert answers(read, number) == [number]
    if "e" not in number:  # which no list of numbers inside a string has
        assert answers(read, f'"[{number}, 7]"') == answers(read, f'["[{number}]", 7]') == [number, "7"]
    assert read(f'{{"id": {number}, "contents": "x"}}', Passage).id == number


@pytest.mark.parametrize("written", ["null", "7", '"wiki"', "[]", '["a", 1]', "{}", '{"a": {"b": [null]}}', "true"])
def test_metadata_of_any_type_is_no_fault(read, written):
    row = read(f'{{"id": 1, "question": "who?", "golden_answers": ["Bob"], "metadata": {written}}}')
    assert (row.id, row.metadata) == ("1", json.loads(written))
    assert read(f'{{"id": 1, "contents": "x", "metadata": {written}}}', Passage).contents == "x"
