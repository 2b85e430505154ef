"""Corpora as people have them: the check, the index and the search take the same rows of the same files."""

import gzip
import json
import pickle
from collections import Counter

import faiss
import numpy as np
import pytest
from conftest import questions, read_jsonl, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

import utils.retrieval.corpus
from utils.config import UsageError
from utils.retrieval.corpus import open_checked, read_corpus
from utils.store.jsonlines import fault_handler, read_rows
from utils.store.rows import Passage


@pytest.fixture
def phases(run_script, tmp_path, tiny_encoder):
    """Return a function that writes a corpus and gives the results of --check, build_index.py and get_docs on it."""
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(3))

    def run(content, *flags, name="own.jsonl", vectors=0):
        (tmp_path / name).write_bytes(content)
        if vectors:  # an index from elsewhere
            index = faiss.IndexFlatIP(32)
            index.add(np.eye(vectors, 32, dtype=np.float32))
            faiss.write_index(index, str(tmp_path / "own.index"))
        common = ["--corpus_path", name, "--index_path", "own.index", "--retriever_path", tiny_encoder, *flags]
        docs = ["dataset_generation.py", "--dataset", "own", *common]
        checked = run_script(*docs, "--check", cwd=tmp_path)
        built = None if vectors else run_script("build_index.py", *common, cwd=tmp_path)
        return checked, built, run_script(*docs, "--phase", "get_docs", cwd=tmp_path)

    return run


def lines(*rows):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def passage(number, **others):
    return {"id": number, "contents": f"T\nnumber {number}", **others}


ACCEPTED = {
    "columns that change their type or come late": lines(
        passage(0, blob="x" * 11_000_000),
        *(passage(i, year=1900 + i) for i in (1, 2)),
        passage(3, year="1999?"),
        passage(4, extra={"deep": [1, "x"]}),
    ),
    "ids like dates": lines(passage("2024-01-01"), passage("2024-01-02T10:00:00"), passage("12:30")),
    "ids like numbers": b"".join(
        b'{"id": %s, "contents": "number"}\n' % number
        for number in (b"3.50", b"3.5", b"1e5", b"7.0", b"18446744073709551617", b"-12345678901234567890123")
    ),
    "two byte order marks, blank lines, CRLF": b"\xef\xbb\xbf\xef\xbb\xbf"
    + lines(passage(1)).replace(b"\n", b"\r\n\r\n")
    + b"  \n"
    + lines(passage(2)),
    "separators of other systems inside a text": lines(
        {"id": "a", "contents": "one\u2028two\x85three\x0b"}, passage(2)
    ),
    "text for contents": lines({"id": 1, "text": "T\nnumber 1", "title": "T"}, {"id": 2, "text": "T\nnumber 2"}),
    "metadata of any type": lines(passage(1, metadata="x"), passage(2, metadata=[1]), passage(3, metadata={"a": 1})),
}


NAMES = [*((case, "own.jsonl") for case in ACCEPTED), ("ids like dates", "own.json"), ("ids like dates", "own")]


@pytest.mark.parametrize(("case", "name"), NAMES)
def test_what_the_check_accepts_is_indexed_and_found(phases, tmp_path, case, name):
    results = phases(ACCEPTED[case], name=name)
    assert [result.returncode for result in results] == [0, 0, 0], [result.stderr for result in results]
    written = [line for line in ACCEPTED[case].replace(b"\xef\xbb\xbf", b"").splitlines() if line.strip()]
    found = read_jsonl(tmp_path / "dataset/own/train_docs_20000.passages.jsonl")
    assert f"{name}: {len(found)} sound rows" in results[0].stdout
    if "numbers" in case:
        ids = ["3.50", "3.5", "1e5", "7.0", "18446744073709551617", "-12345678901234567890123"]
    else:
        ids = [str(json.loads(line)["id"]) for line in written if line.startswith(b"{")]
    assert [row["id"] for row in found] == ids
    assert {key for row in found for key in row} == {"id", "contents"}


REFUSED = {
    "gzip": (gzip.compress(lines(passage(1))), "gunzip it"),
    "one array in a line": (json.dumps([passage(1), passage(2)]).encode(), "one JSON array; make it JSON lines"),
    "one array over lines": (json.dumps([passage(1)], indent=1).encode(), "one JSON array; make it JSON lines"),
    "one id twice": (lines(passage(7), passage(2), passage("7")), "own.jsonl:3: id '7' is on line 1 too"),
    "a faulty last line": (lines(passage(1)) + b'{"id": 2, "cont', "own.jsonl:2: not valid JSON"),
    "a blank text": (lines(passage(1), {"id": 2, "contents": " "}), "own.jsonl:2: field 'contents'"),
    "text after contents": (lines(passage(1), {"id": 2, "text": "x"}), "own.jsonl:2: field 'contents'"),
    "contents after text": (lines({"id": 2, "text": "x"}, passage(1)), "own.jsonl:2: field 'text'"),
    "no row": (b"\n\n", "own.jsonl:1: the file has no sound row"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_check_refuses_is_refused_before_the_work(phases, tmp_path, case, monkeypatch):
    monkeypatch.setattr("utils.retrieval.index.start_workers", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr("utils.retrieval.retrievers.retriever_encoder", lambda *_: pytest.fail("encoded"))
    content, message = REFUSED[case]
    checked, built, _ = phases(content)
    assert (checked.returncode, built.returncode) == (1, 2)
    assert message.rpartition(": ")[2] in checked.stdout
    assert message in built.stderr
    searched = phases(content, vectors=max(1, content.count(b"\n")))[2]
    assert (searched.returncode, message in searched.stderr) == (2, True), searched.stderr


def test_bad_rows_are_left_out_alike_and_counted(phases, tmp_path):
    content = b"not json\n" + lines(passage(1), passage(2), {"id": 3}, passage("1"), passage(4)) + b"[]\n"
    _, built, searched = phases(content, "--skip_bad_rows")
    assert (built.returncode, searched.returncode) == (0, 0), built.stderr + searched.stderr
    assert [row["id"] for row in read_jsonl(tmp_path / "dataset/own/train_docs_20000.passages.jsonl")] == [
        "1",
        "2",
        "4",
    ]
    left_out = json.loads((tmp_path / "own.index.manifest.json").read_text())["dropped"]
    assert left_out == {
        "lines that are not valid JSON": 1, "rows with a wrong field": 1, "lines that are no JSON object": 1,
        "rows with a repeated id": 1,
    }  # fmt: skip
    assert "left out, the first of its kind: own.jsonl:5: id '1' is on line 2 too" in built.stderr
    facts = json.loads((tmp_path / "dataset/own/train_docs_20000.jsonl.manifest.json").read_text())["facts"]
    assert facts["left out of the corpus"] == 4
    searched = phases(content)[2]
    assert (searched.returncode, "give --skip_bad_rows here too" in searched.stderr) == (2, True)


def test_an_index_with_the_bad_rows_is_refused(phases):
    searched = phases(lines(passage(1), passage(1), passage(2)), "--skip_bad_rows", vectors=3)[2]
    assert (searched.returncode, "3 vectors but own.jsonl has 2 passages" in searched.stderr) == (2, True)


LINES = [
    b"\n",
    b" \r\n",
    b"nothing\n",
    b"[]\n",
    b'{"id": 1}\n',
    *(b'{"id": %d, "contents": "%d"}\n' % (i, i) for i in range(6)),
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=40), st.integers(1, 5), st.booleans())
def test_rows_and_faults_are_those_of_the_reader_that_keeps_all_ids(tmp_path_factory, found, size, collide):
    path = tmp_path_factory.mktemp("corpus") / "own.jsonl"
    path.write_bytes(b"".join(found))
    left_out, expected = Counter(), Counter()
    try:
        rows = read_rows(path, Passage, dropped=expected)
    except UsageError:
        with pytest.raises(UsageError):
            read_corpus(path, fault_handler(left_out))
        return
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # different ids with one hash
            patch.setattr(utils.retrieval.corpus, "hash", lambda text: int(text) % 2, raising=False)
        corpus = read_corpus(path, fault_handler(left_out))
    assert (list(corpus), left_out) == (rows, expected)
    parts = [pickle.loads(pickle.dumps(part)) for part in corpus.split(size)]  # as workers of a cluster get them
    assert [row for part in parts for row in part] == rows
    assert {len(part) for part in parts[:-1]} <= {size}
    assert list(corpus[list(range(len(rows)))[::-1]]) == rows[::-1]


def test_a_corpus_that_changes_while_it_is_read_is_told(tmp_path):
    path = write_jsonl(tmp_path / "own.jsonl", [passage(i) for i in range(4)])
    corpus = read_corpus(path)
    path.write_bytes(path.read_bytes()[3:])
    with pytest.raises(UsageError, match=r"own.jsonl was changed while it was read"):
        list(corpus)


@pytest.mark.parametrize("field", ["contents", "text"])
def test_a_corpus_that_was_checked_is_not_checked_again(tmp_path, phases, field):
    lines = [b'\xef\xbb\xbf{"id": 1, "%s": "one"}\r\n', b"\n", b" \r\n", b"\xef\xbb\xbf\n", b'{"id": "b", "%s": "two"}']
    content = b"".join(line % field.encode() if b"%s" in line else line for line in lines)
    _, built, retrieved = phases(content)
    assert (built.returncode, retrieved.returncode) == (0, 0), built.stderr + retrieved.stderr
    assert ("check corpus" in built.stderr, "check corpus" in retrieved.stderr) == (True, False)
    path = tmp_path / "own.jsonl"
    assert list(open_checked(path)) == list(read_corpus(path))
    assert len(open_checked(path)) == 2
