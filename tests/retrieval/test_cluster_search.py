"""The search of one index in ranges, by workers that are pickled as a cluster's are: the rows of one search."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import UsageError
from utils.retrieval.index import join_shards
from utils.retrieval.search import BlockIndex, ClusterIndex


def pickled_here(make):
    """Start one worker in this process, which like a cluster's takes and gives only bytes, and the last part first."""
    made = pickle.dumps(make)

    def run(parts):
        worker = pickle.loads(made)()
        there = [(number, pickle.loads(pickle.dumps(part))) for number, part in enumerate(parts)]
        return ((number, pickle.loads(pickle.dumps(worker(part)))) for number, part in reversed(there))

    return run


def write_index(folder, rows, storage="fp32"):
    np.save(folder / "rows.npy", rows)
    join_shards([folder / "rows.npy"], rows.shape[1], folder / f"{storage}.index", storage)
    return str(folder / f"{storage}.index")


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_the_neighbours_of_one_search(tmp_path, shards, storage):
    rng = np.random.default_rng(0)
    rows, asked = rng.standard_normal((1003, 48), dtype=np.float32), rng.standard_normal((40, 48), dtype=np.float32)
    path = write_index(tmp_path, rows, storage)
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
    path = write_index(tmp_path_factory.mktemp("index"), rows)
    scores, found = ClusterIndex(path, pickled_here, a_range, on_gpu=False).search(asked, topk)
    expected, theirs = BlockIndex(path).search(asked, topk)
    np.testing.assert_array_equal(found, theirs)
    np.testing.assert_array_equal(scores, expected)
    assert ((found == -1).sum(axis=1) == max(0, topk - count)).all()


def test_an_index_of_another_kind_is_refused(tmp_path):
    import faiss

    faiss.write_index(faiss.index_factory(8, "HNSW4"), str(tmp_path / "other.index"))
    with pytest.raises(UsageError, match="no Flat index"):
        ClusterIndex(str(tmp_path / "other.index"), pickled_here, 10, on_gpu=False)
