"""The search by blocks against faiss's, over the files that build_index.py writes, and by a cluster's workers."""

import os
import pickle

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import utils.retrieval.search
from utils.config import UsageError
from utils.retrieval.index import join_shards
from utils.retrieval.search import BlockIndex, ClusterIndex, best_columns


def write_index(folder, rows, storage="fp32"):
    np.save(folder / "rows.npy", rows)
    join_shards([folder / "rows.npy"], rows.shape[1], folder / f"{storage}.index", storage)
    return folder / f"{storage}.index"


def coarse(rng, *shape):
    """Numbers whose products and sums are exact, so that many scores are equal."""
    return rng.integers(-2, 3, shape).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 90),
    queries=st.integers(1, 30),
    topk=st.integers(1, 60),
    block=st.integers(1, 100),
    storage=st.sampled_from(["fp32", "fp16"]),
    kept=st.booleans(),
)
def test_equal_to_faiss_and_of_equal_scores_the_first(
    tmp_path_factory, seed, count, queries, topk, block, storage, kept
):
    rng = np.random.default_rng(seed)
    rows, asked = coarse(rng, count, 6), coarse(rng, queries, 6)
    path = write_index(tmp_path_factory.mktemp("index"), rows, storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.retrieval.search, "MOST_ROWS", block)
        scores, found = BlockIndex(path, keep=kept).search(asked, topk)
    expected, theirs = faiss.read_index(str(path)).search(asked, topk)
    assert (scores.dtype, found.dtype) == (expected.dtype, theirs.dtype)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(found == -1, theirs == -1)
    stable = np.argsort(-(asked @ rows.T), axis=1, kind="stable")[:, :topk]
    np.testing.assert_array_equal(found[:, : stable.shape[1]], stable)


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_the_neighbours_of_real_numbers_are_faisss(tmp_path, storage):
    rng = np.random.default_rng(0)
    rows, asked = rng.standard_normal((3000, 48), dtype=np.float32), rng.standard_normal((40, 48), dtype=np.float32)
    path = write_index(tmp_path, rows, storage)
    scores, found = BlockIndex(path).search(asked, 50)
    expected, theirs = faiss.read_index(str(path)).search(asked, 50)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert (found == theirs).mean() > 0.99


@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 20))
def test_best_columns_take_the_first_of_equal_scores(seed, width, count):
    scores = torch.from_numpy(coarse(np.random.default_rng(seed), 5, width))
    found = best_columns(scores, count).sort(dim=1)[0]
    expected = scores.sort(dim=1, descending=True, stable=True)[1][:, :count].sort(dim=1)[0]
    assert torch.equal(found, expected)


def test_one_reading_of_the_file_serves_all_queries(tmp_path, monkeypatch):
    path = write_index(tmp_path, coarse(np.random.default_rng(0), 1000, 6), "fp16")
    index, read = BlockIndex(path), []
    blocks = index._read
    monkeypatch.setattr(index, "_read", lambda size: (read.append(len(b)) or (s, b) for s, b in blocks(size)))
    monkeypatch.setattr(utils.retrieval.search, "MOST_SCORES", 300 * 64)
    index.search(np.ones((300, 6), dtype=np.float32), 5)
    assert sum(read) == 1000
    assert max(read) == 64  # fewer rows at once for more queries


def test_other_indexes_and_a_file_cut_short_are_refused(tmp_path):
    faiss.write_index(faiss.IndexFlatL2(6), str(tmp_path / "l2.index"))
    with pytest.raises(UsageError, match="l2.index is no Flat index with inner product"):
        BlockIndex(tmp_path / "l2.index")
    path = write_index(tmp_path, coarse(np.random.default_rng(0), 100, 6))
    index = BlockIndex(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UsageError, match="has become shorter"):
        index.search(np.ones((1, 6), dtype=np.float32), 5)


def test_an_empty_index_has_no_neighbours(tmp_path):
    path = write_index(tmp_path, np.zeros((0, 6), dtype=np.float32))
    assert (BlockIndex(path).search(np.ones((2, 6), dtype=np.float32), 3)[1] == -1).all()


def pickled_here(make):
    """Start one worker in this process, which like a cluster's takes and gives only bytes, and the last part first."""
    made = pickle.dumps(make)

    def run(parts):
        worker = pickle.loads(made)()
        there = [(number, pickle.loads(pickle.dumps(part))) for number, part in enumerate(parts)]
        return ((number, pickle.loads(pickle.dumps(worker(part)))) for number, part in reversed(there))

    return run


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_a_cluster_finds_the_neighbours_of_one_search(tmp_path, shards, storage):
    rng = np.random.default_rng(0)
    rows, asked = rng.standard_normal((1003, 48), dtype=np.float32), rng.standard_normal((40, 48), dtype=np.float32)
    path = str(write_index(tmp_path, rows, storage))
    scores, found = ClusterIndex(path, pickled_here, -(-1003 // shards), on_gpu=False).search(asked, 50)
    expected, theirs = BlockIndex(path).search(asked, 50)
    np.testing.assert_array_equal(found, theirs)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), count=st.integers(1, 60), a_range=st.integers(1, 70), topk=st.integers(1, 70)
)  # fmt: skip
def test_ranges_smaller_than_k_missing_neighbours_and_equal_scores(tmp_path_factory, seed, count, a_range, topk):
    rng = np.random.default_rng(seed)
    rows, asked = (rng.integers(-2, 3, (n, 6)).astype(np.float32) for n in (count, 5))
    path = str(write_index(tmp_path_factory.mktemp("index"), rows))
    scores, found = ClusterIndex(path, pickled_here, a_range, on_gpu=False).search(asked, topk)
    expected, theirs = BlockIndex(path).search(asked, topk)
    np.testing.assert_array_equal(found, theirs)
    np.testing.assert_array_equal(scores, expected)
    assert ((found == -1).sum(axis=1) == max(0, topk - count)).all()


def test_a_cluster_refuses_an_index_of_another_kind(tmp_path):
    faiss.write_index(faiss.index_factory(8, "HNSW4"), str(tmp_path / "other.index"))
    with pytest.raises(UsageError, match="no Flat index"):
        ClusterIndex(str(tmp_path / "other.index"), pickled_here, 10, on_gpu=False)
