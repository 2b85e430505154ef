from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SUBJECTS

from utils.rag import rerankers
from utils.rag.rerankers import LengthSortedReranker, rerank_worker
from utils.store.rows import Candidates


def flat(reranker, questions, passages):
    return [score for scores in reranker.score(questions, passages) for score in scores]


def ranked(args, questions, passages):
    """The ids and scores that reranking would write; a passage's id is its place."""
    rows = [
        (Candidates(id=str(i), question=question, golden_answers=["x"], passage_ids=list(map(str, range(len(texts)))),
                    scores=[0.0] * len(texts)), texts)
        for i, (question, texts) in enumerate(zip(questions, passages, strict=True))
    ]  # fmt: skip
    return [(found["passage_ids"], found["scores"]) for found in rerank_worker(args, 0)(rows)]


@pytest.fixture
def args(tiny_reranker):
    return SimpleNamespace(
        trust_remote_code=[],
        rerank_model_name=None, rerank_model_path=str(tiny_reranker), rerank_topk=5, rerank_max_length=64,
        rerank_batch_size=4, use_fp16=False,
    )  # fmt: skip


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    queries = [f"which {subject} is it" for subject in SUBJECTS[:6]]
    docs = [
        [{"id": f"{q}-{i}", "contents": " ".join(rng.choice(SUBJECTS, rng.integers(1, 40)))} for i in range(11)]
        for q in range(6)
    ]
    return queries, docs


def test_same_scores_and_order_as_flashrags_reranker(args, task):
    from flashrag.retriever.reranker import CrossReranker

    queries, docs = task
    found, scores = CrossReranker(vars(args) | {"device": "cpu"}).rerank(queries, docs, topk=11)
    ours = ranked(args, queries, [[doc["contents"] for doc in row] for row in docs])
    assert [[f"{q}-{pid}" for pid in ids] for q, (ids, _) in enumerate(ours)] == [
        [d["id"] for d in row] for row in found
    ]
    np.testing.assert_allclose([scores for _, scores in ours], scores, atol=1e-4)


def test_same_scores_as_flagembeddings_reranker(args, task):
    from FlagEmbedding import FlagReranker

    queries, docs = task
    pairs = [(query, doc["contents"]) for query, found in zip(queries, docs, strict=True) for doc in found]
    theirs = FlagReranker(args.rerank_model_path, use_fp16=False, devices="cpu").compute_score(pairs, max_length=64)
    ours = flat(LengthSortedReranker(args), queries, [[doc["contents"] for doc in row] for row in docs])
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_equal_scores_keep_the_retrievers_order(args):
    ((found, scores),) = ranked(args, ["a question"], [["the same words"] * 9])
    assert found == [str(i) for i in range(9)]
    assert len(set(scores)) == 1


def test_a_pair_is_scored_once_whatever_its_copies(args, task):
    """A pair's last digits depend on the batch it is in, so copies must not be in two."""
    reranker, seen = LengthSortedReranker(args), []
    inner = reranker.ranker.forward
    reranker.ranker.forward = lambda **inputs: (seen.append(len(inputs["input_ids"])), inner(**inputs))[1]
    texts = [f"words {'and more ' * (i % 5)}" for i in range(15)]
    scores = flat(reranker, ["one", "two", "one"], [texts, texts[:7], texts[:2]])
    assert sum(seen) == 5 + 5
    assert scores[:5] == scores[5:10] == scores[10:15]
    assert scores[15:20] != scores[:5]
    assert scores[22:] == scores[:2]


def test_half_precision_hardly_moves_scores_and_makes_no_ties(args, task, monkeypatch):
    queries, docs = task
    texts = [[doc["contents"] for doc in found] for found in docs]
    full = np.array(flat(LengthSortedReranker(args), queries, texts))
    args.use_fp16 = True
    assert flat(LengthSortedReranker(args), queries, texts) == full.tolist()  # this is a CPU
    monkeypatch.setattr(rerankers, "half_precision", lambda: torch.bfloat16)
    half = np.array(flat(LengthSortedReranker(args), queries, texts))
    assert (half != full).any()
    assert np.corrcoef(half, full)[0, 1] > 0.999
    assert len(set(half)) == len(set(full)) == 66


def test_a_question_longer_than_the_pair_leaves_room_for_the_passage(args):
    reranker = LengthSortedReranker(args)
    query = "river " * 500
    scores = flat(reranker, [query], [["glacier comet", "lantern orchard tunnel"]])
    assert scores[0] != scores[1]
    ids = reranker._tokenise([query, "short"], ["glacier comet", "engine"])["input_ids"]
    assert len(ids[0]) <= 64
    assert reranker.tokenizer.decode(ids[0]).endswith("glacier comet [SEP]")
    assert reranker.tokenizer.decode(ids[1]) == "[CLS] short [SEP] engine [SEP]"


def test_no_passages_is_no_error(args):
    assert [ids for ids, _ in ranked(args, ["a", "b"], [[], ["x"]])] == [[], ["0"]]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("architecture", ["XLMRoberta", "Gte", "ModernBert", "DebertaV2"])
def test_rerankers_of_other_architectures(args, task, tokenizer, tmp_path, monkeypatch, architecture, half):
    """bge-reranker-* are XLM-R, gte-multilingual-reranker is GTE; newer ones come in other shapes."""
    import transformers

    monkeypatch.setattr(rerankers, "half_precision", lambda: torch.bfloat16)  # a GPU's way, on a CPU
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=514, type_vocab_size=2, initializer_range=0.3, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = getattr(transformers, f"{architecture}ForSequenceClassification")(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    args.rerank_model_path, args.use_fp16 = str(tmp_path), half
    queries, docs = task
    reranker = LengthSortedReranker(args)
    ours = flat(reranker, queries, [[doc["contents"] for doc in found] for found in docs])
    assert len(ours) == 66
    for i, (query, found) in enumerate(zip(queries, docs, strict=True)):
        inputs = reranker.tokenizer(query, found[3]["contents"], truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            alone = model(**inputs).logits.item()
        assert ours[11 * i + 3] == pytest.approx(alone, abs=1e-4 if not half else 0.2)
