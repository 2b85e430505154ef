import os

import pandas
import pytest
from conftest import questions, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.retrieval import answers, checks
from utils.retrieval.answers import apply_rows, has_answer
from utils.retrieval.checks import answers_found
from utils.store.rows import Passage

WORDS = st.lists(st.sampled_from(["new", "york", "York", "u.s.", "a", "ß", "Σας", "..."]), min_size=1, max_size=4)


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

    monkeypatch.setattr(checks, "PASSAGES_AT_ONCE", 10)
    monkeypatch.setattr(checks, "apply_rows", search)
    assert answers_found(["3", "24", "25", "passage 13"], passages()) == {"3", "24", "passage 13"}
    assert blocks == [(10, 10), (10, 20), (5, 25)]


def test_many_passages_are_searched_by_several_processes_with_the_same_result(monkeypatch, capfd):
    passages = [Passage(id=str(i), contents=f"passage {i} of York") for i in range(60)]
    names = {"York", "new York", "59", "60"}
    here = answers_found(names, passages)
    assert here == {"York", "59"}
    monkeypatch.setattr(answers, "MANY_ROWS", 2)
    assert answers_found(names, passages) == here
    assert os.getpid() not in set(apply_rows(pandas.Series([0] * 10), lambda _: os.getpid()))
    with pytest.raises(ZeroDivisionError):
        apply_rows(pandas.Series([1, 0, 2]), lambda row: 1 // row)
    assert capfd.readouterr().out == ""
