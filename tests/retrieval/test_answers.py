import doctest
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

import utils.retrieval.answers
from utils.retrieval.answers import BETWEEN, has_answer, occurs, prepare


def tokens(text):
    return prepare(text).split(BETWEEN)[1:-1]


def naive_tokens(text):
    """DPR's rule told again, a character at a time."""
    found, run = [], ""
    for char in unicodedata.normalize("NFD", text):
        if regex.match(r"[\p{L}\p{N}\p{M}]", char):
            run += char
            continue
        if run:
            found.append(run)
        run = ""
        if not regex.match(r"[\p{Z}\p{C}]", char):
            found.append(char)
    return [token.lower() for token in ([*found, run] if run else found)]


def naive_has_answer(answers, passage):
    words = naive_tokens(passage)
    for answer in answers:
        wanted = naive_tokens(answer)
        for start in range(len(words) - len(wanted) + 1):
            if wanted and words[start : start + len(wanted)] == wanted:
                return True
    return False


# Few distinct pieces, so that matches, near misses and overlaps are all common.
PIECES = [*"aAb.", "ab", "é", "e\u0301", *"ΣςσİßÅ٣'-– \n𝔸한", "\x1f", "\u200b"]
crowded = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
texts = st.one_of(crowded, st.text(max_size=20))


@given(texts)
def test_tokens_agree_with_a_restatement(text):
    assert tokens(text) == naive_tokens(text)
    assert prepare(text) == (BETWEEN + BETWEEN.join(tokens(text)) + BETWEEN if tokens(text) else "")


@given(st.lists(crowded, max_size=3), crowded)
def test_has_answer_agrees_with_a_restatement(answers, passage):
    assert has_answer(answers, passage) == naive_has_answer(answers, passage)
    assert occurs(map(prepare, answers), prepare(passage)) == naive_has_answer(answers, passage)


@given(texts, texts, texts)
def test_an_answer_between_spaces_is_always_found(before, answer, after):
    assert has_answer([answer], f"{before} {answer} {after}") == bool(tokens(answer))


@pytest.mark.parametrize(
    ("answer", "passage", "expected"),
    [
        ("Paris", "PARIS is old", True),
        ("Paris", "Parisian cafés", False),
        ("café", "cafe\u0301", True),
        ("cafe", "café", False),  # marks are kept, as DPR keeps them
        ("14 December 1972", "on 14  December\n1972.", True),
        ("14 December 1972", "14 December, 1972", False),
        ("U.S.", "the u.s. army", True),
        ("US", "the U.S. army", False),
        ("ΟΔΟΣ", "η οδος", True),
        ("$5", "cost $5 each", True),
        ("東京", "東京", True),
        ("東", "東京", False),  # a run of letters is one token
        ("5", "2.5 million", True),
    ],
)
def test_known_cases(answer, passage, expected):
    assert has_answer([answer], passage) is expected


@pytest.mark.parametrize("answer", ["", " ", "\u200b", BETWEEN, f"{BETWEEN}{BETWEEN}"])
@pytest.mark.parametrize("passage", ["", " ", "some text", BETWEEN])
def test_an_answer_without_tokens_never_matches(answer, passage):
    assert has_answer([answer], passage) is False
    assert occurs([prepare(answer)], prepare(passage)) is False


def test_no_answers_never_match():
    assert has_answer([], "some text") is False


def test_any_answer_suffices():
    assert has_answer(["nobody", "", "Text"], "some text")


def test_examples_in_the_docstrings():
    tried = doctest.testmod(utils.retrieval.answers)
    assert tried.attempted >= 3
    assert tried.failed == 0
