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
    "A dog is an animal", "a dog", "I think a dog",
    "I think A dog would", "The answer is a dog", "I think so", "Dad",
    "Vitamin C", "The answer is vitamin C.", "hepatitis B", "B cells", "The answer is C major", "D-glucose",
    "The answer is D-glucose", "C++", "C#", "A*", "The answer is C++", "D.C. is the capital", "B.C.", "a.m.",
    "B. F. Skinner", "D'Alembert", "c - 5 = 3", "f(B)", "B is the most common", "Cab", "42",
    # nothing chosen
    "", "  \n", "E", "(E)", "The answer is E", "None of the above", "I don't know", "Answer:",
    "The answer is not B", "The answer isn't B",
    "The wrong answer is B", "Option A is wrong.", "B is not correct",
    "If the answer is A, then it rains",
    # several chosen
    "AB", "ABCD", "A/B", "A, B", "A or B", "A, B and C", "The answer is A and B", "Either B or C", "A\nB",
    "The answer is (B) or (C)", "The answer is A, or B",
    "A. B. C. D.", "A. Paris\nB. London", "A) foo B) bar C) baz",
    "Option A, Option B", "Answer: A, B", "The answer is A. The answer is B.",
    "The answer is A. B is correct.", "A. foo. The answer is B.", "C\n\nThe answer is B",
]  # fmt: skip
CONCLUDED = [
    # what is denied, supposed or compared is not chosen
    "The answer is B (not A).", "The answer is B, not A.",
    "The answer is B rather than A.", "The answer is not A but B.",
    "Not A. The answer is B.", "The answer isn't A; the answer is B.", "The answer is B, because A is wrong.",
    "The answer is B since A) is too late.",
    "A and C are wrong; the answer is B.", "A is wrong, so the answer is B.",
    "Option A is incorrect so the answer is B.",
    "Answer: B\n\nExplanation: Option A is wrong because it is late.",
    # a conclusion
    "The passages describe a feud. Therefore, B.", "Hence B.", "So, B.", "In conclusion, B.", "Conclusion: B",
    "So the answer must be B.", "Therefore, the correct option is (B).", "B. Paris is the capital, so B.",
    "Based on the documents, B is the answer",
    "Among the options, B is correct.", "The best answer is therefore B.",
    # a choice
    "I'm going with B.", "I'd say B", "My choice is B.",
    "My final answer is B.", "The correct one is B.", "Ans: B",
    "It must be B.", "That would be B.", "Choose B.",
    "Select B", "Answer → B", "B ✓", "✅ B", '{"answer": "B"}', "[[B]]",
    # thoughts are not the answer
    "<think>It could be A. The answer is A?</think>B",
    "<think>The answer is A. No.</think>\n\nThe answer is B.",
    "Okay, A looks right. The answer is A.</think>\nB",
    # other scripts and languages
    "Ｂ", "（Ｂ）", "答案：B", "答案是 B。", "正确答案是B", "正确答案：（B）",
    "答案为B", "选B", "故选B。", "选择B。", "因此，B。", "B，因为",
    "正解：B", "答え：B", "答えはBです", "정답: B", "정답은 B입니다.", "الإجابة: B", "Ответ: B", "Antwort: B",
    "Die richtige Antwort ist B", "Réponse : B",
    "La réponse est B.", "Respuesta: B", "La respuesta correcta es B",
    "Risposta: B", "A resposta é B.",
]  # fmt: skip
NOT_CONCLUDED = [
    "I don't think the answer is B.", "I wouldn't say B",
    "I doubt that the answer is B", "The answer might be B",
    "It could be A. It could be B.", "It is not true that B is the answer",
    "The answer cannot be B.", "B is wrong.",
    "Unless it rains, the answer is B",
    "If B is true, A is the answer", "It is unclear whether B is the answer",
    "A is the answer. No, B is the answer.", "Between A and B, A is more common.",
    "Answer: A; C", "Answer: A and also C",
    "Let's consider option B.", "Which of these is correct: A, B, C or D?", "Neither B nor C is correct",
    "Therefore, a dog.", "Therefore, A or B.",
    "So A and B.", "So B cells are the answer", "Thus, C. elegans lives.",
    "Based on the documents, vitamin B is the answer", "Group B is the answer", "The answer is blood type B.",
    "<think>The answer is B", "<think>B</think>", "<think>The answer is B</think>I cannot tell.",
    "答案不是B", "答案：A和B", "选A或B", "答案是B细胞", "Antwort: A oder B", "Antwort: B-Zellen", "答案：E",
]  # fmt: skip


@pytest.mark.parametrize("text", CONCLUDED)
def test_the_conclusion_is_read(text):
    assert parse_letter(text) == "B"


@pytest.mark.parametrize(("text", "letter"), READ.items())
def test_letter_is_read(text, letter):
    assert parse_letter(text) == letter


@pytest.mark.parametrize("text", UNREAD + NOT_CONCLUDED)
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


@pytest.mark.parametrize(
    "text",
    ["<thinking>The answer is A.</thinking>B", "[THINK]The answer is A.[/THINK]\nB",
     "<reasoning>A</reasoning><answer>B</answer>",
     "<|channel|>analysis<|message|>A is correct.<|end|><|start|>assistant<|channel|>final<|message|>B"],
)  # fmt: skip
def test_letters_of_thoughts_are_not_read_whatever_marks_them(text):
    assert parse_letter(text) == "B"
    assert parse_letter(text.rpartition("B")[0].rpartition("A")[0]) is None
