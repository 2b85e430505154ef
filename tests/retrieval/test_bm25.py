"""BM25 through FlashRAG's retriever, over indexes of FlashRAG's builder and of our own."""

import os

import numpy as np
import pytest
from conftest import SUBJECTS, questions, read_jsonl, write_jsonl

from utils.config import UsageError


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, corpus, run_script):
    """The index as FlashRAG's builder writes it."""
    folder = tmp_path_factory.mktemp("flashrag")
    words = ["--retrieval_method", "bm25", "--bm25_backend", "bm25s", "--corpus_path", corpus, "--save_dir", folder]
    result = run_script("-m", "flashrag.retriever.index_builder", *words, cwd=folder, HF_HOME=str(folder / "hf"))
    assert (folder / "bm25/params.index.json").exists(), result.stderr[-2000:]
    return folder / "bm25"


@pytest.fixture(scope="module")
def own(tmp_path_factory, corpus, run_script):
    """The index as build_index.py writes it."""
    folder = tmp_path_factory.mktemp("own")
    flags = ["--retrieval_method", "bm25", "--corpus_path", corpus, "--index_path", "bm25"]
    result = run_script("build_index.py", *flags, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "is finished (60 rows)" in run_script("build_index.py", *flags, cwd=folder).stdout
    return folder / "bm25"


@pytest.fixture
def retriever(retrieval_args):
    from utils.retrieval.retrievers import Bm25sRetriever

    def over(index, topk=10):
        retrieval_args.retrieval_method, retrieval_args.index_path = "bm25", str(index)
        return Bm25sRetriever(retrieval_args, topk)

    return over


def flashrags(args, topk, monkeypatch, stemmed):
    """FlashRAG's own retriever; ``stemmed`` mends that it does not stem queries."""
    import bm25s
    import Stemmer
    from flashrag.retriever.retriever import BM25Retriever
    from test_candidates import flashrag_config

    if stemmed:
        plain, stemmer = bm25s.tokenize, Stemmer.Stemmer("english")
        monkeypatch.setattr(bm25s, "tokenize", lambda texts: plain(texts, stemmer=stemmer, show_progress=False))
    return BM25Retriever(flashrag_config(args, topk) | {"bm25_backend": "bm25s"})


@pytest.mark.parametrize("index", ["theirs", "own"])
def test_same_passages_and_scores_as_flashrags_retriever(index, request, retriever, retrieval_args, monkeypatch):
    texts = [row["question"] for row in questions(9)] + ["glaciers and rivers 12"]
    ours = retriever(request.getfixturevalue(index), 60)
    documents, scores = ours.batch_search(texts, return_score=True)
    reference = flashrags(retrieval_args, 60, monkeypatch, stemmed=True)
    expected, their_scores = reference.batch_search(texts, 60, True)
    np.testing.assert_allclose(scores, their_scores, atol=1e-5)
    for found, wanted, values in zip(documents, expected, scores, strict=True):
        # FlashRAG's order of equal scores is any; the passages of each score must be the same.
        for value in set(values):
            level = [i for i, score in enumerate(values) if score == value]
            assert {found[i]["id"] for i in level} == {wanted[i]["id"] for i in level}
        assert [row["contents"] for row in found if row["id"] == "p3"] == [
            r["contents"] for r in wanted if r["id"] == "p3"
        ]


def test_flashrag_alone_would_not_find_another_form_of_a_word(retriever, own, retrieval_args, monkeypatch):
    ours = retriever(own, 5)
    _, plain = flashrags(retrieval_args, 5, monkeypatch, stemmed=False).batch_search(["glaciers"], 5, True)
    assert max(plain[0]) == 0
    assert ours.search_rows(["glaciers"], 5) == ours.search_rows(["glacier"], 5)
    assert ours.search_rows(["glaciers"], 5)[0][1][0] > 0


def test_equal_scores_keep_the_corpus_order_at_the_cut_too(retriever, own):
    rows, scores = retriever(own).search_rows(["river"], 60)[0]
    assert rows == sorted(range(60), key=lambda row: (-scores[rows.index(row)], row))
    for topk in (1, 3, 7):
        assert retriever(own).search_rows(["river"], topk)[0][0] == rows[:topk]
    assert retriever(own).search_rows(["unheard", ""], 3) == [([0, 1, 2], [0.0, 0.0, 0.0])] * 2


def test_an_index_of_another_corpus_or_none_is_refused(retriever, own, retrieval_args, corpus, tmp_path):
    shorter = write_jsonl(tmp_path / "shorter.jsonl", read_jsonl(corpus)[:-1])
    retrieval_args.corpus_path = str(shorter)
    with pytest.raises(UsageError, match="holds 60 passages but .* has 59"):
        retriever(own)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is no whole BM25 index"):
        retriever(tmp_path / "empty")


def flags_of(index, corpus):
    return ["--retrieval_method", "bm25", "--index_path", index, "--corpus_path", corpus]


def test_get_docs_and_run_rag_search_it(own, corpus, run_script, tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"dataset/own/{split}.jsonl", questions(12))
    get_docs = ["dataset_generation.py", "--dataset", "own", "--phase", "get_docs", "--docs_topk", "20"]
    result = run_script(*get_docs, *flags_of(own, corpus), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    docs = read_jsonl(tmp_path / "dataset/own/train_docs_20000.jsonl")
    texts = {row["id"]: row["contents"] for row in read_jsonl(corpus)}
    for row in docs:
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert len(row["passage_ids"]) == 20
        assert SUBJECTS[int(row["id"][1:]) % 10] in texts[row["passage_ids"][0]].casefold()
    made = run_script("run_rag.py", "--dataset", "own", "--framework", "none", *flags_of(own, corpus), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "mrr" in made.stdout
    refused = run_script(*get_docs, *flags_of(tmp_path / "none", corpus), cwd=tmp_path)
    assert (refused.returncode, "build_index.py makes it" in refused.stderr) == (2, True)
    refused = run_script(*get_docs, *flags_of(own, corpus), "--engine", "ray", "--overwrite", cwd=tmp_path)
    assert (refused.returncode, "BM25 is searched on one machine" in refused.stderr) == (2, True)
    other = write_jsonl(
        tmp_path / "other.jsonl", [row | {"contents": "x " + row["contents"]} for row in read_jsonl(corpus)]
    )
    refused = run_script(*get_docs, *flags_of(own, other), "--overwrite", cwd=tmp_path)
    assert (refused.returncode, "was not made with --corpus_path" in refused.stderr) == (2, True)


def test_a_search_that_was_stopped_goes_on(own, corpus, run_script, tmp_path, monkeypatch):
    from utils.retrieval.retrievers import Bm25sRetriever

    unknown = {"id": "odd", "question": "???", "golden_answers": ["x"]}
    write_jsonl(tmp_path / "dataset/own/train.jsonl", [*questions(12), unknown])
    words = ["dataset_generation.py", "--dataset", "own", "--phase", "get_docs", "--retrieval_batch_size", "4"]
    asked, search_rows = [], Bm25sRetriever.search_rows

    def dies_at_the_third(self, queries, topk):
        asked.extend(queries)
        if len(asked) == 12 and not os.environ.get("ALIVE"):
            raise KeyboardInterrupt
        return search_rows(self, queries, topk)

    monkeypatch.setattr(Bm25sRetriever, "search_rows", dies_at_the_third)
    assert run_script(*words, *flags_of(own, corpus), cwd=tmp_path).returncode != 0
    del asked[:]
    result = run_script(*words, *flags_of(own, corpus), cwd=tmp_path, ALIVE="1")
    assert result.returncode == 0
    assert len(asked) == 5
    assert "1 questions share no word with the corpus: they got its first passages" in result.stdout
