"""Answer matching over candidates; bootstrap intervals."""

import pytest
from conftest import write_jsonl

from utils.rag.metrics import bootstrap, relevance
from utils.store.jsonlines import PassageTexts
from utils.store.rows import Candidates


def test_each_candidate_is_labelled_by_its_question_and_id(tmp_path):
    rows = [{"id": f"p{i}", "contents": f"title\nabout number {i}"} for i in range(10)]
    texts = PassageTexts(write_jsonl(tmp_path / "texts.jsonl", rows))
    candidates = [
        Candidates(
            id=f"q{i}", question="which?", golden_answers=[str(i), f"number {i + 1}"],
            passage_ids=[f"p{(i + k) % 10}" for k in range(3 + i % 2)], scores=[1.0] * (3 + i % 2),
        )
        for i in range(7)
    ]  # fmt: skip
    expected = {row.id: {pid: int(k < 2) for k, pid in enumerate(row.passage_ids)} for row in candidates}
    assert relevance(candidates, texts) == expected
    assert relevance([], texts) == {}


def test_agrees_with_the_normal_approximation():
    found = bootstrap([1.0] * 300 + [0.0] * 700, seed=42)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (found.mean, found.n) == (0.3, 1000)
    assert found.low == pytest.approx(0.3 - half, abs=0.003)
    assert found.high == pytest.approx(0.3 + half, abs=0.003)


def test_follows_the_seed():
    values = [1.0, 0.0, 0.0] * 37
    assert bootstrap(values, 1) == bootstrap(values, 1)
    assert len({str(bootstrap(values, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0, 1.0], [0.0, 0.0]])
def test_no_interval_where_resampling_says_nothing(values):
    found = bootstrap(values, 42)
    assert (found.mean, found.low, found.high) == (values[0], None, None)
