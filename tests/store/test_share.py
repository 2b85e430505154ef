"""Several processes that share a phase without a cluster: the joined files are those of one process."""

import pytest
from conftest import questions, read_jsonl, write_jsonl

from utils.store.journal import Journal
from utils.store.share import Share, others


@pytest.fixture
def folder(tmp_path, corpus):
    rows = questions(23)
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"dataset/own/{split}.jsonl", rows)
    reasons = [row | {"reason": f"because of {row['question']}"} for row in rows]
    write_jsonl(tmp_path / "dataset/own/reason/train_with_reason.jsonl", reasons)
    return tmp_path


@pytest.fixture
def commands(corpus, index, tiny_encoder, tiny_reranker, tiny_llama):
    search = ["--retriever_path", tiny_encoder, "--corpus_path", corpus, "--index_path", index]
    rag = ["run_rag.py", "--dataset", "own", *search]
    ranked = [*rag, "--rerank_model_path", tiny_reranker, "--rerank_max_length", "64"]
    answers = [*ranked, "--framework", "hf", "--model_path", tiny_llama, "--max_tokens", "4"]
    answers += ["--run_name", "own_test_reranker_llama"]
    return {
        "retrieval alone": [*rag, "--framework", "none"],
        "rankings alone": [*ranked, "--framework", "none"],
        "build_index": [
            "build_index.py", "--retriever_path", tiny_encoder, "--corpus_path", corpus, "--index_path", "own.index",
            "--index_shard_size", "7",
        ],
        "get_docs": ["dataset_generation.py", "--dataset", "own", "--phase=get_docs", *search],
        "scores": [
            "dataset_generation.py", "--dataset", "own", "--phase=generate_dataset", "--method=reason", "--scorer",
            "encoder", "--model_path", tiny_encoder, "--scorer_batch_size", "1",
        ],
        "run_rag": answers,
    }  # fmt: skip


# What is compared, and the commands that join one stage after another.
PHASES = {
    "build_index": (["own.index"], ["build_index"]),
    "get_docs": (["dataset/own/train_docs_20000.jsonl", "dataset/own/train_docs_20000.passages.jsonl"], ["get_docs"]),
    "scores": (["dataset/own/reason/score_cache.jsonl"], ["scores"]),
    "run_rag": (
        ["output/own_test_reranker_llama/intermediate_data.json"],
        ["retrieval alone", "rankings alone", "run_rag"],
    ),
}


@pytest.mark.parametrize("name", PHASES)
def test_shares_join_to_the_file_of_one_process(name, commands, folder, run_script):
    outputs, stages = PHASES[name]
    if name == "scores":
        assert run_script(*commands["get_docs"], cwd=folder).returncode == 0
    words = [*commands[name], "--num_shards", "3"]
    for stage in stages:
        for share in (2, 0, 1):
            result = run_script(*words, "--shard_index", share, cwd=folder)
            assert result.returncode == 0, result.stderr
            assert f"share {share} of 3 is done" in result.stdout
        result = run_script(*commands[stage], cwd=folder)
        assert result.returncode == 0, result.stderr
    joined = {path: (folder / path).read_bytes() for path in outputs}
    alone = run_script(*commands[name], "--overwrite", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    assert joined == {path: (folder / path).read_bytes() for path in outputs}
    assert not list(folder.rglob("*-of-*"))


def test_a_missing_share_is_done_by_the_one_that_joins(commands, folder, run_script):
    words = [*commands["build_index"], "--num_shards", "3"]
    assert run_script(*words, "--shard_index", "1", cwd=folder).returncode == 0
    assert len(list((folder / "own.index.shards").glob("*.npy"))) < 9
    assert run_script(*words, cwd=folder).returncode == 0
    joined = (folder / "own.index").read_bytes()
    assert run_script(*commands["build_index"], "--overwrite", cwd=folder).returncode == 0
    assert (folder / "own.index").read_bytes() == joined


def test_a_share_that_none_has_is_told(commands, folder, run_script):
    result = run_script(*commands["build_index"], "--num_shards", "3", "--shard_index", "3", cwd=folder)
    assert result.returncode == 2
    assert "--shard_index 3 must be below --num_shards 3" in result.stderr


def test_a_journal_takes_over_the_shares_records_once(tmp_path):
    path = tmp_path / "work.journal.jsonl"
    for number in range(3):
        with Journal(path, made_with="x", share=Share(number, 3)) as journal:
            for item in range(number, 10, 3):
                journal.append(f"k{item}", {"value": item})
    assert len(others(path)) == 3
    for _ in range(2):
        with Journal(path, made_with="x") as journal:
            assert {key: journal[key]["value"] for key in journal} == {f"k{item}": item for item in range(10)}
    assert others(path) == []
    assert len(read_jsonl(path)) == 11
