import doctest
import os
import signal
import unicodedata

import pandas
import pytest
import regex
from conftest import questions, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.retrieval import answers
from utils.retrieval.answers import BETWEEN, answers_found, apply_rows, has_answer, occurs, prepare
from utils.store.rows import Passage


def tokens(text):
    return prepare(text).split(BETWEEN)[1:-1]


SCRIPTS = ["Han", "Hiragana", "Katakana", "Bopomofo", "Hangul", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"]
SCRIPTS += ["Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"]


def is_unspaced(char):
    found = char in "ーｰ" or any(regex.match(rf"\p{{{script}}}", char) for script in SCRIPTS)
    return found and unicodedata.category(char) != "Nd"


def is_attached(char):
    jamo = unicodedata.name(char, "").startswith(("HANGUL JUNGSEONG", "HANGUL JONGSEONG"))
    return jamo or char in "ำຳ" or bool(regex.match(r"\p{M}", char))


def naive_tokens(text):
    """The rule told again, a character at a time."""
    found, unspaced, in_token = [], False, False
    for char in unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold()):
        if in_token and unspaced and is_attached(char):
            found[-1] += char
        elif is_unspaced(char):
            found.append(char)
            in_token, unspaced = True, True
        elif regex.match(r"[\p{L}\p{N}\p{M}]", char):
            if in_token and not unspaced:
                found[-1] += char
            else:
                found.append(char)
            in_token, unspaced = True, False
        else:
            in_token = False
            if not regex.match(r"[\p{Z}\p{C}]", char):
                found.append(char)
    return found


def naive_has_answer(golden, passage):
    words = naive_tokens(passage)
    for answer in golden:
        wanted = naive_tokens(answer)
        for start in range(len(words) - len(wanted) + 1):
            if wanted and words[start : start + len(wanted)] == wanted:
                return True
    return False


# Few distinct pieces, so that matches, near misses and overlaps are all common.
PIECES = [*"aAb.", "ab", "é", "e\u0301", *"ΣςσİßÅ٣'-– \n𝔸한", "\x1f", "\u200b"]
PIECES += [*"東京コーガ1๒ำ가각กรุ", "ss", "SS", "ẞ", "ᅡ", "ི"]
crowded = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
texts = st.one_of(crowded, st.text(max_size=20))


@given(texts)
def test_tokens_agree_with_a_restatement(text):
    assert tokens(text) == naive_tokens(text)
    assert prepare(text) == (BETWEEN + BETWEEN.join(tokens(text)) + BETWEEN if tokens(text) else "")


@given(st.lists(crowded, max_size=3), crowded)
def test_has_answer_agrees_with_a_restatement(golden, passage):
    assert has_answer(golden, passage) == naive_has_answer(golden, passage)
    assert occurs(map(prepare, golden), prepare(passage)) == naive_has_answer(golden, passage)


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
        ("東", "東京", True),  # without blanks, each letter is a token
        ("東京", "日本の首都は東京。", True),
        ("东京", "日本的首都是东京。", True),
        ("北京", "京北", False),
        ("東京", "東の京", False),
        ("1998", "1998年に", True),
        ("199", "1998年に", False),
        ("iPhone", "苹果的iPhone手机", True),
        ("Phone", "苹果的iPhone手机", False),
        ("ハット", "ハッド", False),  # a letter keeps its marks
        ("コーヒー", "このコーヒーは", True),
        ("ハ", "パリ", False),
        ("스페인", "스페인에서", True),  # particles follow without a blank
        ("가", "각", False),
        ("กรุงเทพ", "ที่กรุงเทพมหานคร", True),
        ("นำ", "นํ้า", False),
        ("๕", "๒๕๖๗", False),  # digits form runs
        ("ພາສາລາວ", "ຂອງພາສາລາວແມ່ນ", True),
        ("ភ្នំពេញ", "រាជធានីភ្នំពេញនៃ", True),
        ("ရန်ကုန်", "မြို့ရန်ကုန်မှာ", True),
        ("བླ་མ", "བླ་མའི", True),
        ("Königstraße", "in der KÖNIGSTRASSE 5", True),
        ("STRASSE", "Straße", True),
        ("ΣΊΣΥΦΟΣ", "σίσυφος", True),
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
    tried = doctest.testmod(answers)
    assert tried.attempted >= 4
    assert tried.failed == 0


WORDS = st.lists(
    st.sampled_from(["new", "york", "York", "u.s.", "ß", "SS", "Σας", "東京", "東", "..."]), min_size=1, max_size=4
)


@settings(max_examples=15, deadline=None)
@given(st.lists(WORDS, max_size=5), st.lists(WORDS, min_size=1, max_size=8))
def test_the_automaton_finds_what_one_by_one_matching_finds(golden, texts):
    names = {" ".join(words) for words in golden}
    passages = [Passage(id=str(i), contents=" ".join(words)) for i, words in enumerate(texts)]
    expected = {name for name in names if any(has_answer([name], passage.contents) for passage in passages)}
    assert answers_found(names, passages) == expected


@pytest.fixture
def check(run_script, tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", [{"id": i, "contents": f"T\nhere is number {i}"} for i in range(3)])

    def run(rows, *flags):
        write_jsonl(tmp_path / "dataset/own/train.jsonl", rows)
        flags = ("--dataset", "own", "--corpus_path", "corpus.jsonl", "--check", *flags)
        return run_script("dataset_generation.py", *flags, cwd=tmp_path)

    return run


def test_a_sound_dataset_passes_and_missing_answers_are_named(check):
    result = check(questions(5))
    assert result.returncode == 0, result.stderr
    assert "train.jsonl: 5 sound rows" in result.stdout
    assert "corpus.jsonl: 3 sound rows" in result.stdout
    assert "2 of 5 questions have no answer in any passage (ids q3, q4, ...)" in result.stdout


def test_the_share_of_questions_that_are_matched_letter_by_letter_is_told(check):
    rows = [*questions(7), {"id": "x", "question": "?", "golden_answers": ["Tokyo", "東京"]}]
    assert "1 of 8 questions (12.5%) have an answer in a script without blanks" in check(rows).stdout
    assert "without blanks" not in check(questions(7)).stdout


@pytest.mark.parametrize("empty", ["corpus.jsonl", "dataset/own/dev.jsonl"])
def test_what_no_phase_reads_is_no_sound_dataset(check, tmp_path, empty):
    (tmp_path / "dataset/own").mkdir(parents=True)
    (tmp_path / empty).write_text("\n")
    result = check(questions(2))
    assert result.returncode == 1
    assert f"{empty}: 0 sound rows" in result.stdout


def test_every_fault_is_counted_with_its_first_place(check, tmp_path):
    rows = [*questions(2), {"id": "x", "question": "no answers"}, questions(1)[0], {"id": "y", "question": "none"}]
    path = tmp_path / "corpus.jsonl"
    path.write_text(path.read_text() + '{"id": 9}\nnot json\n')
    result = check(rows)
    assert result.returncode == 1
    assert "train.jsonl: 2 sound rows" in result.stdout
    assert "2 x field 'golden_answers': Field required, first at line 3" in result.stdout
    assert "1 x rows with a repeated id, first at line 4 (id 'q0' is on line 1 too" in result.stdout
    assert "1 x field 'contents': Field required, first at line 4" in result.stdout
    assert "1 x lines that are not valid JSON, first at line 5" in result.stdout


def test_missing_files_are_told(check, run_script, tmp_path):
    assert "corpus nowhere is missing" in check(questions(1), "--corpus_path", "nowhere").stderr
    flags = ("--dataset", "none", "--corpus_path", "corpus.jsonl", "--check")
    assert "has none of train.jsonl" in run_script("dataset_generation.py", *flags, cwd=tmp_path).stderr
    assert "--phase=get_docs or" in run_script("dataset_generation.py", cwd=tmp_path).stderr


def test_a_corpus_is_searched_a_block_at_a_time(monkeypatch):
    taken, blocks = 0, []

    def passages():
        nonlocal taken
        for i in range(25):
            taken += 1
            yield Passage(id=str(i), contents=f"passage {i}")

    def search(rows, *args, **options):
        blocks.append((len(rows), taken))
        return apply_rows(rows, *args, **options)

    monkeypatch.setattr(answers, "PASSAGES_AT_ONCE", 10)
    monkeypatch.setattr(answers, "apply_rows", search)
    assert answers_found(["3", "24", "25", "passage 13"], passages()) == {"3", "24", "passage 13"}
    assert blocks == [(10, 10), (10, 20), (5, 25)]


def test_passages_are_searched_by_other_processes_whose_errors_are_raised(capfd):
    passages = [Passage(id=str(i), contents=f"passage {i} of York") for i in range(60)]
    names = {"York", "new York", "59", "60"}
    assert answers_found(names, passages) == {"York", "59"}
    assert os.getpid() not in set(apply_rows(pandas.Series([0] * 10), lambda _: os.getpid()))
    with pytest.raises(ZeroDivisionError):
        apply_rows(pandas.Series([1, 0, 2]), lambda row: 1 // row)
    assert capfd.readouterr().out == ""


def _sigterm_is_default(_):
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_sigterm_handler_does_not_reach_the_workers_and_comes_back():
    """With one, such as Ray's, a worker can miss the pool's SIGTERM while it is forked, and hang."""

    def handler(*_):
        raise AssertionError("never called")

    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert apply_rows(pandas.Series(range(4)), _sigterm_is_default).all()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
