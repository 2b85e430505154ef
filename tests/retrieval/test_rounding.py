"""Passages of equal text: the same vector, one score, corpus order, whatever batches and blocks they fall into."""

import faiss
import numpy as np
import pytest
from conftest import questions, read_jsonl, write_jsonl

import utils.retrieval.index
from utils.retrieval.candidates import retrieve
from utils.retrieval.encoder import TextEncoder
from utils.store.rows import Question

TWIN = "the river and the castle number 17"


@pytest.mark.parametrize("others", range(1, 9))
def test_equal_texts_get_equal_vectors_in_any_batch(tiny_encoder, others):
    """On AVX2 a text alone in its batch has other last digits than beside others."""
    texts = [TWIN, *(f"{TWIN[:-1]}{i}" for i in range(others)), TWIN, "a longer text before all others " * 3, TWIN]
    rows = TextEncoder(str(tiny_encoder), 64).encode(texts, batch_size=4)
    np.testing.assert_array_equal(rows[[-3, -1]], rows[[0, 0]])


@pytest.fixture
def twins(retrieval_args, corpus, tmp_path, run_script, monkeypatch):
    """An index of 60 passages and five copies of p3, encoded in blocks of eight passages."""
    passages = read_jsonl(corpus)[:58]
    copies = [{"id": f"copy{i}", "contents": passages[3]["contents"]} for i in range(5)]
    rows = [*copies[:2], *passages[:30], copies[2], *passages[30:], *copies[3:]]
    retrieval_args.corpus_path = str(write_jsonl(tmp_path / "twins.jsonl", rows))
    retrieval_args.index_path = str(tmp_path / "twins.index")
    monkeypatch.setattr(utils.retrieval.index, "BATCHES_AT_ONCE", 2)
    words = ["--corpus_path", retrieval_args.corpus_path, "--index_path", retrieval_args.index_path]
    words += ["--retriever_path", retrieval_args.retriever_path, "--index_batch_size", "4"]
    assert run_script("build_index.py", *words, cwd=tmp_path).returncode == 0
    return retrieval_args


def is_copy(pid):
    return pid == "p3" or pid.startswith("copy")


def candidates(args, folder, topk=65):
    retrieve([Question(**row) for row in questions(9)], args, topk, folder / "docs.jsonl")
    return read_jsonl(folder / "docs.jsonl")


def assert_in_corpus_order(rows):
    for row in rows:
        found = [(pid, score) for pid, score in zip(row["passage_ids"], row["scores"], strict=True) if is_copy(pid)]
        assert [pid for pid, _ in found] == ["copy0", "copy1", "p3", "copy2", "copy3", "copy4"]
        assert len({score for _, score in found}) == 1
        assert row["scores"] == sorted(row["scores"], reverse=True)


def test_equal_passages_of_different_blocks_stand_in_corpus_order_with_one_score(twins, tmp_path):
    vectors = faiss.read_index(twins.index_path).reconstruct_n(0, 63)
    assert abs(vectors[[0, 1, 32, 61, 62]] - vectors[5]).max() < 1e-6
    assert_in_corpus_order(candidates(twins, tmp_path))


def test_last_digits_of_equal_passages_decide_nothing(twins, tmp_path):
    """The same where rounding would put the last copy first, on any processor."""
    index = faiss.read_index(twins.index_path)
    vectors = index.reconstruct_n(0, 63)
    for i, row in enumerate([0, 1, 5, 32, 61, 62]):
        vectors[row] = vectors[5] * np.float32(1 + 4e-7 * i)
    index.reset()
    index.add(vectors)
    faiss.write_index(index, twins.index_path)
    (tmp_path / "twins.index.manifest.json").unlink()
    assert_in_corpus_order(candidates(twins, tmp_path))


def test_scores_of_other_passages_stay_as_they_are(twins, tmp_path):
    from utils.retrieval.retrievers import FlatRetriever

    twins.retrieval_batch_size = 9  # other numbers of questions at once give other last digits
    found = FlatRetriever(twins, 63).search_rows([row["question"] for row in questions(9)], 63)
    ids = [row["id"] for row in read_jsonl(twins.corpus_path)]
    for row, (rows, scores) in zip(candidates(twins, tmp_path, 63), found, strict=True):
        theirs = dict(zip((ids[i] for i in rows), scores, strict=True))
        ours = dict(zip(row["passage_ids"], row["scores"], strict=True))
        assert ours.keys() == theirs.keys()
        assert all(score == theirs[pid] for pid, score in ours.items() if not is_copy(pid))
        others = [pid for pid in row["passage_ids"] if not is_copy(pid)]
        assert others == [ids[i] for i in rows if not is_copy(ids[i])]
