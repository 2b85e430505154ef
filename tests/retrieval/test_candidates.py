import contextlib
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, questions, read_jsonl, write_jsonl

from utils.config import UsageError, phase_arguments
from utils.store.rows import Question


def rows(count):
    return [Question(**row) for row in questions(count)]


def flashrag_config(args, topk):
    return vars(args) | {
        "retrieval_topk": topk, "retrieval_model_path": args.retriever_path, "use_sentence_transformer": False,
        "use_reranker": False, "save_retrieval_cache": False, "use_retrieval_cache": False,
        "retrieval_cache_path": None, "retrieval_use_fp16": False,
    }  # fmt: skip


def test_same_passages_and_scores_as_flashrags_retriever(retrieval_args):
    from flashrag.retriever.retriever import DenseRetriever

    from utils.retrieval.retrievers import FlatRetriever

    texts = [row.question for row in rows(9)]
    ours, our_scores = FlatRetriever(retrieval_args, 10).batch_search(texts, return_score=True)
    theirs, their_scores = DenseRetriever(flashrag_config(retrieval_args, 10)).batch_search(texts, return_score=True)
    assert [[doc["id"] for doc in docs] for docs in ours] == [[doc["id"] for doc in docs] for docs in theirs]
    assert [[doc["contents"] for doc in docs] for docs in ours] == [[d["contents"] for d in docs] for docs in theirs]
    np.testing.assert_allclose(our_scores, their_scores, atol=1e-5)


def test_an_index_of_another_kind_is_searched_by_faiss(retrieval_args, index, tmp_path):
    import faiss

    from utils.retrieval.retrievers import FlatRetriever

    rows = faiss.read_index(str(index)).reconstruct_n(0, 60)
    other = faiss.index_factory(32, "HNSW8", faiss.METRIC_INNER_PRODUCT)
    other.add(rows)
    faiss.write_index(other, str(tmp_path / "other.index"))
    flat = FlatRetriever(retrieval_args, 3).batch_search(["the river"])
    retrieval_args.index_path = str(tmp_path / "other.index")
    for retrieval_args.faiss_mmap in (True, False):
        retriever = FlatRetriever(retrieval_args, 3)
        assert isinstance(retriever.index, faiss.IndexHNSW)
        assert retriever.batch_search(["the river"])[0][0] == flat[0][0]


def test_an_index_in_half_precision_is_read_by_flashrag(retrieval_args, index, tmp_path):
    import faiss
    from flashrag.retriever.retriever import DenseRetriever

    from utils.retrieval.index import join_shards
    from utils.retrieval.retrievers import FlatRetriever

    np.save(tmp_path / "rows.npy", faiss.read_index(str(index)).reconstruct_n(0, 60))
    join_shards([tmp_path / "rows.npy"], 32, tmp_path / "half.index", "fp16")
    texts = [row.question for row in rows(9)]
    whole, scores = FlatRetriever(retrieval_args, 10).batch_search(texts, return_score=True)
    retrieval_args.index_path = str(tmp_path / "half.index")
    half, half_scores = FlatRetriever(retrieval_args, 10).batch_search(texts, return_score=True)
    theirs = DenseRetriever(flashrag_config(retrieval_args, 10)).batch_search(texts)
    np.testing.assert_allclose(half_scores, scores, atol=1e-3)
    kept = [len({doc["id"] for doc in a} & {doc["id"] for doc in b}) for a, b in zip(half, whole, strict=True)]
    assert sum(kept) >= 85
    assert [{doc["id"] for doc in docs} for docs in half] == [{doc["id"] for doc in docs} for docs in theirs]


@pytest.mark.parametrize(("large", "passes"), [(1 << 40, [4, 4, 1]), (0, [9])])
def test_a_large_index_is_searched_for_many_questions_at_once(retrieval_args, tmp_path, monkeypatch, large, passes):
    import utils.retrieval.candidates
    from utils.retrieval.retrievers import FlatRetriever

    searched = []
    search_rows = FlatRetriever.search_rows
    monkeypatch.setattr(
        FlatRetriever,
        "search_rows",
        lambda self, texts, k: (searched.append(len(texts)), search_rows(self, texts, k))[1],
    )
    monkeypatch.setattr(utils.retrieval.candidates, "LARGE_INDEX", large)
    utils.retrieval.candidates.retrieve(rows(9), retrieval_args, 5, tmp_path / "docs.jsonl")
    assert searched == passes


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(retrieval_args):
    from utils.retrieval.retrievers import FlatRetriever

    retrieval_args.faiss_gpu = True
    with pytest.raises(UsageError, match="--faiss_gpu: torch sees no GPU"):
        FlatRetriever(retrieval_args, 5)


def test_a_single_long_question_is_not_cut_to_characters(retrieval_args):
    from utils.retrieval.retrievers import FlatRetriever

    retriever = FlatRetriever(retrieval_args, 5)
    text = "the river " * 12 + "number 41"
    alone = retriever.search(text, return_score=True)
    batch = retriever.batch_search([text], return_score=True)
    assert (alone[0], alone[1]) == (batch[0][0], batch[1][0])


@pytest.mark.parametrize("mmap", [True, False])
def test_neighbours_that_do_not_exist_are_left_out(retrieval_args, mmap):
    from utils.retrieval.retrievers import FlatRetriever

    retrieval_args.faiss_mmap = mmap
    found, scores = FlatRetriever(retrieval_args, 100).batch_search(["the river"], return_score=True)
    assert len(found[0]) == len(scores[0]) == 60
    assert len({doc["id"] for doc in found[0]}) == 60
    assert min(scores[0]) > -2


THREADS = """
import faiss, torch
before = torch.get_num_threads(), faiss.omp_get_max_threads()
import utils.retrieval.retrievers
print(before == (torch.get_num_threads(), faiss.omp_get_max_threads()), before)
"""


@pytest.mark.slow
def test_flashrag_takes_no_threads_away():
    """From torch, which encodes and reranks, as little as from faiss, which searches."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("True")


def test_flashrag_still_pads_and_cuts(retrieval_args):
    """The two traps that FlatRetriever closes; should this fail, FlashRAG has mended them."""
    from flashrag.retriever.retriever import DenseRetriever

    theirs = DenseRetriever(flashrag_config(retrieval_args, 100))
    found, scores = theirs.batch_search(["the river"], return_score=True)
    assert len(found[0]) == 100
    assert min(scores[0]) < -1e30
    text = "the river " * 12 + "number 41"
    assert theirs.search(text, return_score=True)[1] != theirs.batch_search([text], return_score=True)[1][0]


def test_the_query_prefix_follows_the_method(retrieval_args):
    from utils.retrieval.candidates import check_retrieval_inputs
    from utils.retrieval.retrievers import query_prefix

    assert query_prefix("e5", None) == "query: "
    assert query_prefix("minilm", None) == ""
    assert query_prefix("minilm", "search:") == "search: "
    assert query_prefix("bge", None).startswith("Represent this sentence")
    assert {query_prefix(name, None) for name in ("bge-m3", "BGE_M3", "bgem3-ko")} == {""}
    assert {query_prefix(name, "") for name in ("e5", "bge", "minilm")} == {""}
    check_retrieval_inputs(retrieval_args)
    retrieval_args.retriever_path, retrieval_args.retrieval_method = "/models/e5-base-v2", "dense"
    with pytest.raises(UsageError, match="use --retrieval_method e5"):
        check_retrieval_inputs(retrieval_args)


@pytest.mark.parametrize(
    ("path", "method", "instruction", "wanted"),
    [
        ("BAAI/bge-m3", "bge-m3", None, None),
        ("BAAI/bge-m3", "bge", None, "bge-m3"),
        ("BAAI/bge-m3", "minilm", None, "bge-m3"),
        ("BAAI/bge-m3", "bge", "", None),
        ("BAAI/bge-base-en", "bge-m3", None, "bge"),
        ("BAAI/bge-base-en", "minilm", "", None),
        ("intfloat/e5-small", "minilm", "query:", "e5"),
        ("other/model", "bge-m3", None, None),
    ],
)
def test_an_encoder_s_own_prefix_is_used_or_another_is_given(retrieval_args, path, method, instruction, wanted):
    from utils.retrieval.candidates import check_retrieval_inputs

    retrieval_args.retriever_path, retrieval_args.retrieval_method = path, method
    retrieval_args.instruction = instruction
    with pytest.raises(UsageError, match=f"use --retrieval_method {wanted}$") if wanted else contextlib.nullcontext():
        check_retrieval_inputs(retrieval_args)


def test_an_empty_instruction_on_the_command_line_means_none():
    assert phase_arguments("", ["retrieval"], argv=["--instruction", ""]).instruction == ""
    assert phase_arguments("", ["retrieval"], argv=[]).instruction is None


def test_index_corpus_and_encoder_must_fit_each_other(retrieval_args, tmp_path, tokenizer):
    import faiss

    from utils.retrieval.retrievers import FlatRetriever

    other = faiss.IndexFlatIP(32)
    other.add(np.zeros((7, 32), dtype=np.float32))
    faiss.write_index(other, str(tmp_path / "few.index"))
    with pytest.raises(UsageError, match="7 vectors but .* has 60 passages"):
        FlatRetriever(SimpleNamespace(**vars(retrieval_args) | {"index_path": str(tmp_path / "few.index")}), 5)
    wide = faiss.IndexFlatIP(48)
    wide.add(np.zeros((60, 48), dtype=np.float32))
    faiss.write_index(wide, str(tmp_path / "wide.index"))
    with pytest.raises(UsageError, match="dimension 48 but .* gives 32"):
        FlatRetriever(SimpleNamespace(**vars(retrieval_args) | {"index_path": str(tmp_path / "wide.index")}), 5)


def get_docs_flags(args):
    return [
        "dataset_generation.py", "--dataset", "own", "--phase", "get_docs", "--docs_topk", "7",
        "--retriever_path", args.retriever_path, "--index_path", args.index_path, "--corpus_path", args.corpus_path,
        "--retrieval_batch_size", "2",
    ]  # fmt: skip


def test_get_docs_writes_candidates_and_each_passage_once(retrieval_args, run_script, tmp_path):
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(9))
    result = run_script(*get_docs_flags(retrieval_args), "--train_questions", "8", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    docs = read_jsonl(tmp_path / "dataset/own/train_docs_8.jsonl")
    passages = read_jsonl(tmp_path / "dataset/own/train_docs_8.passages.jsonl")
    assert [row["id"] for row in docs] == [f"q{i}" for i in range(8)]
    assert all(row["scores"] == sorted(row["scores"], reverse=True) and len(row["scores"]) == 7 for row in docs)
    named = {pid for row in docs for pid in row["passage_ids"]}
    assert {row["id"] for row in passages} == named
    assert len(passages) == len(named)
    again = run_script(*get_docs_flags(retrieval_args), "--train_questions", "8", cwd=tmp_path)
    assert "is finished (8 rows)" in again.stdout
    assert not list((tmp_path / "dataset/own").glob("*journal*"))


@pytest.mark.slow
def test_get_docs_goes_on_after_a_kill(retrieval_args, run_script, start_script, tmp_path):
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(400))
    journal = tmp_path / "dataset/own/train_docs_20000.journal.jsonl"
    process = start_script(*get_docs_flags(retrieval_args), cwd=tmp_path)
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 40):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    kept = len(journal.read_bytes().splitlines()) - 1
    assert kept < 400
    resumed = run_script(*get_docs_flags(retrieval_args), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{kept}/400" in resumed.stderr
    interrupted = (tmp_path / "dataset/own/train_docs_20000.jsonl").read_bytes()
    assert run_script(*get_docs_flags(retrieval_args), "--overwrite", cwd=tmp_path).returncode == 0
    assert (tmp_path / "dataset/own/train_docs_20000.jsonl").read_bytes() == interrupted


def test_missing_and_broken_inputs_name_file_line_and_next_step(retrieval_args, run_script, tmp_path):
    flags = get_docs_flags(retrieval_args)
    missing = run_script(*flags, cwd=tmp_path)
    assert (missing.returncode, "dataset/own/train.jsonl is missing" in missing.stderr) == (2, True)
    for rows_, message in (
        ([{"id": 1, "question": "a"}], "train.jsonl:1: field 'golden_answers'"),
        ([{"id": 1, "question": " ", "golden_answers": ["b"]}], "train.jsonl:1: field 'question'"),
        ([*questions(2), questions(1)[0]], "train.jsonl:3: id 'q0' is on line 1 too"),
    ):
        write_jsonl(tmp_path / "dataset/own/train.jsonl", rows_)
        result = run_script(*flags, cwd=tmp_path)
        assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(2))
    result = run_script(*flags, "--index_path", "nowhere.index", cwd=tmp_path)
    assert (result.returncode, "index nowhere.index is missing" in result.stderr) == (2, True), result.stderr
    assert "Traceback" not in result.stderr
