"""Answer matching over candidates, in this process and in several."""

import pytest
from conftest import write_jsonl

from utils.rag import metrics
from utils.rag.metrics import relevance
from utils.retrieval import answers
from utils.store.jsonlines import PassageTexts
from utils.store.rows import Candidates


@pytest.mark.parametrize("processes", ["one", "several"])
def test_each_candidate_is_labelled_by_its_question_and_id(tmp_path, monkeypatch, processes):
    rows = [{"id": f"p{i}", "contents": f"title\nabout number {i}"} for i in range(10)]
    texts = PassageTexts(write_jsonl(tmp_path / "texts.jsonl", rows))
    candidates = [
        Candidates(
            id=f"q{i}", question="which?", golden_answers=[str(i), f"number {i + 1}"],
            passage_ids=[f"p{(i + k) % 10}" for k in range(3 + i % 2)], scores=[1.0] * (3 + i % 2),
        )
        for i in range(7)
    ]  # fmt: skip
    monkeypatch.setattr(metrics, "QUESTIONS_AT_ONCE", 3)
    if processes == "several":
        monkeypatch.setattr(answers, "MANY_ROWS", 2)
    expected = {row.id: {pid: int(k < 2) for k, pid in enumerate(row.passage_ids)} for row in candidates}
    assert relevance(candidates, texts) == expected
    assert relevance([], texts) == {}
