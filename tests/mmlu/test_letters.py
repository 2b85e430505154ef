"""MMLU: categories, and the letter of an answer."""

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from utils.config import UsageError
from utils.mmlu.letters import parse_letter
from utils.mmlu.scores import CATEGORIES, CATEGORY, category_of
from utils.mmlu.sources import format_question


# ---------------------------------------------------------------- categories and questions
def test_57_subjects_in_four_categories():
    assert Counter(CATEGORY.values()) == {"STEM": 19, "Humanities": 13, "Social Sciences": 12, "Other": 13}
    assert set(CATEGORY.values()) == set(CATEGORIES)


@pytest.mark.parametrize(
    ("subject", "category"),
    [
        ("anatomy", "STEM"),  # the one that differs from the benchmark authors' table
        ("virology", "Other"),
        ("high school us history", "Humanities"),
        ("high_school_us_history", "Humanities"),
        ("Econometrics", "Social Sciences"),
        ("human_sexuality", "Social Sciences"),
        ("professional_accounting", "Other"),
    ],
)
def test_category_of(subject, category):
    assert category_of(subject) == category


def test_unknown_subject_is_named_with_the_nearest():
    with pytest.raises(UsageError, match=r"'anatommy'; did you mean 'anatomy'"):
        category_of("anatommy")
    with pytest.raises(UsageError, match=r"unknown MMLU subject ''"):
        category_of("")


def test_format_question():
    assert format_question("Why? ", ["x", " y", "None", "A. z"]) == "Why?\nA. x\nB. y\nC. None\nD. A. z"
    for choices in ([], ["x"] * 3, ["x"] * 5):
        with pytest.raises(ValueError, match="zip"):
            format_question("Why?", choices)


# ---------------------------------------------------------------- letters
READ = {
    # the letter alone, in any dress
    **dict.fromkeys(["B", "b", "B.", " (b)\n", "**B**", "[B]", "'B'", "`B`", "*B*", "- B", "> B", "（B）"], "B"),
    **dict.fromkeys(["\\boxed{B}", "$\\boxed{\\text{B}}$", "\\(B\\)", "<answer>B</answer>", "B B B", "B?"], "B"),
    **dict.fromkeys(["a", "A", "a.", "(a)"], "A"),
    # a label and its text, also where the text begins with an article or names options
    **dict.fromkeys(["(B) text", "B) text", "b) text", "B. text", "B: text", "B - text", "B (text)", "B\ntext"], "B"),
    **dict.fromkeys(["B. A decrease in demand", "B. U.S. policy", "B.Paris", "B. 25", "**B. Paris**"], "B"),
    **dict.fromkeys(["B, because it is", "B because it is", "B.\n\nOption A is wrong.", "Look:\nB. Paris"], "B"),
    **dict.fromkeys(["**B** Paris", "B. Paris\nThis is not option A."], "B"),
    **dict.fromkeys(["D. A and B", "D. Both A and B", "D. Neither (A) nor B"], "D"),
    # a statement
    **dict.fromkeys(["The answer is C", "the answer is c.", "The answer is (C) a dog", "Answer: (C)", "Answer:C"], "C"),
    **dict.fromkeys(["**Answer:** C", "Answer: **C**", "The answer is **C) foo**", "## Answer\nC", "answer=C"], "C"),
    **dict.fromkeys(["The correct answer is:\n\nC. foo", "The answer to this question is C", "Correct option: C"], "C"),
    **dict.fromkeys(["Option C", "Choice: C", "I would choose option C.", "I'd go with C.", "I think C."], "C"),
    **dict.fromkeys(["C is correct", "Option c is correct", "It says so. C is the best answer."], "C"),
    **dict.fromkeys(["The answer is C, not B.", "The final answer is \"C\".", "It is Paris (C).", "It's C."], "C"),
    "The answer is A because it is.": "A",
    "A. wrong\nB. right\nThe answer is B.": "B",
    "B\n\nQuestion: an invented one?\nA. x\nB. y\nAnswer: C": "B",
}  # fmt: skip
UNREAD = [
    # prose, in which a letter is an article, a pronoun, a name or a formula
    "A dog is an animal", "a dog", "I think a dog", "I think A dog would", "The answer is a dog", "I think so", "Dad",
    "Vitamin C", "The answer is vitamin C.", "hepatitis B", "B cells", "The answer is C major", "D-glucose",
    "The answer is D-glucose", "C++", "C#", "A*", "The answer is C++", "D.C. is the capital", "B.C.", "a.m.",
    "B. F. Skinner", "D'Alembert", "c - 5 = 3", "f(B)", "B is the most common", "Cab", "42",
    # nothing chosen
    "", "  \n", "E", "(E)", "The answer is E", "None of the above", "I don't know", "Answer:",
    "The answer is not B", "The answer isn't B", "The wrong answer is B", "Option A is wrong.", "B is not correct",
    "If the answer is A, then it rains",
    # several chosen
    "AB", "ABCD", "A/B", "A, B", "A or B", "A, B and C", "The answer is A and B", "Either B or C", "A\nB",
    "The answer is (B) or (C)", "The answer is A, or B", "A. B. C. D.", "A. Paris\nB. London", "A) foo B) bar C) baz",
    "Option A, Option B", "Answer: A, B", "The answer is A. The answer is B.",
    "The answer is A. B is correct.", "A. foo. The answer is B.", "C\n\nThe answer is B",
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), READ.items())
def test_letter_is_read(text, letter):
    assert parse_letter(text) == letter


@pytest.mark.parametrize("text", UNREAD)
def test_no_letter_is_read(text):
    assert parse_letter(text) is None


LETTER = st.sampled_from("ABCD")
# Option texts and prose: words of two letters or more, none of which links letters or states an answer.
WORDS = st.lists(
    st.text("efghijklmnopqrstuvwxyz", min_size=2, max_size=8).filter(lambda w: w not in ("in", "is", "it", "or", "q")),
    min_size=1,
    max_size=6,
).map(" ".join)
DRESS = st.sampled_from(["{}", "({})", "[{}]", "**{}**", "**({})**", '"{}"', "{}.", "{})", "`{}`", "\\boxed{{{}}}"])
LEAD = st.sampled_from(
    ["{}", "Answer: {}", "The answer is {}", "The correct answer is: {}", "Option {}", "I would choose {}", "It is {}"]
)
SPACE = st.sampled_from(["", " ", "\n", "  \n", "\t"])


@given(LETTER, st.booleans(), DRESS, LEAD, SPACE, SPACE)
def test_a_dressed_letter_is_read(letter, lower, dress, lead, before, after):
    text = before + lead.format(dress.format(letter.lower() if lower else letter)) + after
    assert parse_letter(text) == letter


@given(LETTER, st.sampled_from(["{}. {}", "{}) {}", "({}) {}", "{}: {}", "Answer: {}. {}", "{}\n{}"]), WORDS)
def test_the_text_of_the_option_does_not_matter(letter, form, words):
    for text in (words, f"A {words}", f"a {words}", f"Vitamin {words}"):
        assert parse_letter(form.format(letter, text)) == letter


@given(
    st.sampled_from(["{} {}", "I think {} {}", "The answer is {} {}", "Answer: {} {}"]), st.sampled_from("Aa"), WORDS
)
def test_an_article_is_no_letter(form, article, words):
    assert parse_letter(form.format(article, words)) is None


@given(LETTER, LETTER, st.sampled_from([" and ", " or ", ", ", "/", " & ", "\n", ", or "]), LEAD)
def test_two_letters_are_no_answer(first, second, link, lead):
    found = parse_letter(lead.format(first + link + second))
    assert found is None if first != second else found in (None, first)


@given(LETTER, LETTER)
def test_contradictions_are_no_answer(first, second):
    found = parse_letter(f"The answer is {first}. So the answer is {second}.")
    assert found == (first if first == second else None)


@given(st.one_of(st.text(), st.text("ABCDabcd .,:()\n*_$\\answeroption", max_size=80)))
@example("\\boxed")
@example("**answer**:")
def test_any_text_gives_a_letter_that_stands_in_it_or_none(text):
    found = parse_letter(text)
    assert found is None or found in "ABCD"
    assert found is None or found in text.upper()
    assert parse_letter(f"\n {text}\t") == found


@given(WORDS)
def test_prose_without_a_letter_gives_none(words):
    assert parse_letter(f"The answer is {words}.") is None
