"""The index of build_index.py against FlashRAG's builder, and what a kill and a changed input do to it."""

import json
import os
import signal
import time

import faiss
import numpy as np
import pytest
from conftest import read_jsonl, write_jsonl

from utils.retrieval.index import STORAGE, join_shards


@pytest.fixture
def build(run_script, start_script, tmp_path, retrieval_args):
    def run(*flags, start=False, corpus=retrieval_args.corpus_path, name="own.index"):
        words = [
            "build_index.py", "--corpus_path", corpus, "--retriever_path", retrieval_args.retriever_path,
            "--index_path", tmp_path / name, "--index_batch_size", "8", *flags,
        ]  # fmt: skip
        return (start_script if start else run_script)(*words, cwd=tmp_path)

    return run


def vectors(path):
    index = faiss.read_index(str(path))
    assert type(index) is faiss.IndexFlatIP
    return index.reconstruct_n(0, index.ntotal)


@pytest.mark.parametrize("shard", [7, 60, 1000])
def test_the_index_is_flashrags(build, tmp_path, index, shard):
    result = build("--index_shard_size", shard)
    assert result.returncode == 0, result.stderr
    ours, theirs = vectors(tmp_path / "own.index"), vectors(index)
    assert ours.shape == theirs.shape == (60, 32)
    assert abs(ours - theirs).max() < 1e-5
    assert not (tmp_path / "own.index.shards").exists()
    assert "is finished (60 rows)" in build("--index_shard_size", shard).stdout


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_joined_shards_are_the_bytes_that_faiss_writes(tmp_path, storage):
    rows = np.random.default_rng(0).standard_normal((100, 24), dtype=np.float32).astype(STORAGE[storage])
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for path, part in zip(paths, np.split(rows, [33, 90]), strict=True):
        np.save(path, part)
    assert join_shards(paths, 24, tmp_path / "ours.index", storage) == 100
    index = faiss.IndexFlatIP(24)
    if storage == "fp16":
        index = faiss.IndexScalarQuantizer(24, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.add(rows.astype(np.float32))
    faiss.write_index(index, str(tmp_path / "theirs.index"))
    assert (tmp_path / "ours.index").read_bytes() == (tmp_path / "theirs.index").read_bytes()


def test_half_precision_halves_the_file_and_its_shards(build, tmp_path, monkeypatch):
    shards = []
    monkeypatch.setattr(
        "utils.retrieval.index.join_shards",
        lambda paths, *rest: (shards.extend(map(np.load, paths)), join_shards(paths, *rest))[1],
    )
    assert build("--index_storage", "fp16", "--index_shard_size", "25", name="half.index").returncode == 0
    assert build("--index_shard_size", "25").returncode == 0
    half = faiss.read_index(str(tmp_path / "half.index"))
    assert [(rows.dtype, len(rows)) for rows in shards[:3]] == [(np.float16, 25), (np.float16, 25), (np.float16, 10)]
    assert (half.ntotal, half.sq.qtype, half.metric_type) == (
        60,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
    )
    whole = vectors(tmp_path / "own.index")
    np.testing.assert_array_equal(half.reconstruct_n(0, 60), whole.astype(np.float16).astype(np.float32))
    assert (tmp_path / "half.index").stat().st_size < whole.nbytes / 2 + 200
    assert (
        "is finished (60 rows)"
        in build("--index_storage", "fp16", "--index_shard_size", "25", name="half.index").stdout
    )
    result = build("--index_storage", "int8")
    assert (result.returncode, "none of fp32, fp16" in result.stderr) == (2, True)


def test_an_index_of_before_there_was_a_choice_of_storage_stays_finished(build, tmp_path):
    assert build().returncode == 0
    assert "index_storage" not in json.loads((tmp_path / "own.index.manifest.json").read_text())["settings"]


def test_a_second_call_makes_only_the_shards_that_are_missing(build, tmp_path, corpus, monkeypatch):
    from utils.retrieval.encoder import TextEncoder

    encoded = []
    real = TextEncoder.encode

    def counted(self, texts, batch_size=64):
        encoded.extend(texts)
        if len(encoded) > 25:
            raise RuntimeError("no more")
        return real(self, texts, batch_size)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    assert build("--index_shard_size", "10").returncode == 1
    assert len(list((tmp_path / "own.index.shards").glob("*.npy"))) == 2
    encoded.clear()
    monkeypatch.setattr(TextEncoder, "encode", lambda *args: (encoded.extend(args[1]), real(*args))[1])
    assert build("--index_shard_size", "10").returncode == 0
    assert encoded == [row["contents"] for row in read_jsonl(corpus)[20:]]
    build("--index_shard_size", "100", name="whole.index")
    assert abs(vectors(tmp_path / "own.index") - vectors(tmp_path / "whole.index")).max() < 1e-6


@pytest.mark.slow
def test_a_killed_build_ends_with_the_same_bytes(build, tmp_path, corpus):
    big = write_jsonl(
        tmp_path / "big.jsonl", [row | {"id": f"{i}-{row['id']}"} for i in range(60) for row in read_jsonl(corpus)]
    )
    flags = ["--index_shard_size", "300"]
    # Both in processes of their own: what other tests do to torch's threads may move a vector's last bit.
    assert build(*flags, corpus=big, name="whole.index", start=True).wait() == 0
    shards = tmp_path / "own.index.shards"
    for count in (1, 4, 8):
        process = build(*flags, corpus=big, start=True)
        while len(list(shards.glob("[0-9]*.npy"))) < count:
            assert process.poll() is None
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert build(*flags, corpus=big, start=True).wait() == 0
    assert (tmp_path / "own.index").read_bytes() == (tmp_path / "whole.index").read_bytes()


def test_shards_of_another_corpus_are_not_used(build, tmp_path, corpus):
    shards = tmp_path / "own.index.shards"
    shards.mkdir()
    (shards / "made_with").write_text("something else")
    np.save(shards / "00000.npy", np.zeros((60, 32), dtype=np.float32))
    assert build().returncode == 0
    assert abs(np.linalg.norm(vectors(tmp_path / "own.index"), axis=1) - 1).max() < 1e-5


def test_bad_lines_and_missing_files_are_told(build, tmp_path):
    assert "corpus nowhere.jsonl is missing" in build(corpus="nowhere.jsonl").stderr
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"id": "1", "contents": "x"}, {"id": "2", "text": "y"}])
    result = build(corpus=bad)
    assert (result.returncode, "bad.jsonl:2: field 'contents'" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--retrieval_method", "minilm"], "was made with --retrieval_method e5, not minilm"),
        (["--retrieval_pooling_method", "cls"], "was made with --retrieval_pooling_method mean, not cls"),
        (["--retriever_path", "OTHER"], "was not made with --retriever_path"),
    ],
)
def test_an_index_is_searched_only_as_it_was_made(
    build, run_script, tmp_path, retrieval_args, tiny_reranker, flags, message
):
    assert build().returncode == 0
    write_jsonl(tmp_path / "dataset/own/train.jsonl", [{"id": 1, "question": "q", "golden_answers": ["a"]}])
    flags = [str(tiny_reranker) if flag == "OTHER" else flag for flag in flags]
    words = [
        "dataset_generation.py", "--dataset", "own", "--phase=get_docs", "--index_path", tmp_path / "own.index",
        "--corpus_path", retrieval_args.corpus_path, "--retriever_path", retrieval_args.retriever_path,
    ]  # fmt: skip
    result = run_script(*words, *flags, cwd=tmp_path)
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    assert run_script(*words, cwd=tmp_path).returncode == 0


def test_the_manifest_tells_the_encoder(build, tmp_path):
    assert build().returncode == 0
    found = json.loads((tmp_path / "own.index.manifest.json").read_text())
    assert found["rows"] == 60
    assert found["settings"]["retrieval_method"] == "e5"
    assert len(found["inputs"]) == 2


def test_a_folder_in_the_index_s_place_is_told_before_a_passage_is_encoded(build, tmp_path):
    (tmp_path / "own.index").mkdir()
    result = build()
    assert (result.returncode, "own.index is a folder, but a file is to be made there" in result.stderr) == (2, True)
    assert os.listdir(tmp_path) == ["own.index"]


def test_what_a_killed_join_left_counts_as_free(build, tmp_path, monkeypatch):
    """The disk is looked at only after the torn index is gone."""
    torn = tmp_path / ".own.index.999999999.part"
    torn.write_bytes(b"half")
    seen = []
    monkeypatch.setattr("utils.retrieval.index.require_space", lambda *_: seen.append(torn.exists()))
    assert build().returncode == 0
    assert seen == [False]
