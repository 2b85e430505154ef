import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SUBJECTS, questions, read_jsonl, write_jsonl

from utils.config import UsageError
from utils.method import scored_text
from utils.store.files import locked
from utils.store.rows import Rationale
from utils.training.scores import retrieval_scores, score_rationales


@pytest.fixture
def args(tiny_encoder):
    return SimpleNamespace(
        trust_remote_code=[],
        scorer="encoder", model_path=str(tiny_encoder), scorer_max_length=64, scorer_batch_size=4,
        scorer_pooling_method="mean", use_fp16=False, overwrite=False, engine="local",
    )  # fmt: skip


@pytest.fixture
def inputs(tmp_path):
    """12 questions that share 30 passages, 5 candidates each."""
    rng = np.random.default_rng(0)
    rows = questions(12)
    texts = {f"p{i}": f"{SUBJECTS[i % 10]} {i}\n" + "words about it " * (i % 7 + 1) for i in range(30)}
    docs = [
        row | {"passage_ids": [f"p{j}" for j in rng.choice(30, 5, replace=False)], "scores": [5.0, 4.0, 4.0, 2.0, 1.0]}
        for row in rows
    ]
    write_jsonl(tmp_path / "docs.passages.jsonl", [{"id": k, "contents": v} for k, v in texts.items()])
    write_jsonl(tmp_path / "docs.jsonl", docs)
    write_jsonl(tmp_path / "reason.jsonl", [row | {"reason": f"since {row['id']} says so"} for row in rows])
    return SimpleNamespace(docs=docs, texts=texts, rows=rows, folder=tmp_path)


def score(inputs, args, output="cache.jsonl"):
    folder = inputs.folder
    score_rationales(folder / "docs.jsonl", folder / "reason.jsonl", folder / output, args)
    return read_jsonl(folder / output)


def test_the_scored_text_shows_the_answers_as_a_python_list():
    row = Rationale(id="1", question="who?", golden_answers=["A", "B's"], reason="because")
    assert scored_text(row.question, row.golden_answers, row.reason) == """who?. ['A', "B's"]. because"""


def test_equal_to_one_encode_a_question(inputs, args):
    """The published way: for each question encode its text, then its passages."""
    from utils.retrieval.encoder import TextEncoder

    encoder = TextEncoder(args.model_path, 64)
    found = {row["id"]: row for row in score(inputs, args)}
    for doc in inputs.docs:
        query = encoder.encode([f"{doc['question']}. {doc['golden_answers']}. since {doc['id']} says so"])[0]
        expected = {pid: float(encoder.encode([inputs.texts[pid]])[0] @ query) for pid in doc["passage_ids"]}
        row = found[doc["id"]]
        assert row["passage_ids"] == sorted(expected, key=lambda pid: -expected[pid])
        np.testing.assert_allclose(row["scores"], sorted(expected.values(), reverse=True), atol=1e-5)


def test_without_rationales_question_and_answers_alone_are_scored(inputs, args):
    """The published text up to the rationale, for every question."""
    from utils.retrieval.encoder import TextEncoder

    encoder, folder = TextEncoder(args.model_path, 64), inputs.folder
    score_rationales(folder / "docs.jsonl", None, folder / "alone.jsonl", args)
    found = {row["id"]: row for row in read_jsonl(folder / "alone.jsonl")}
    assert len(found) == len(inputs.docs)
    for doc in inputs.docs:
        query = encoder.encode([f"{doc['question']}. {doc['golden_answers']}"])[0]
        expected = [float(encoder.encode([inputs.texts[pid]])[0] @ query) for pid in found[doc["id"]]["passage_ids"]]
        np.testing.assert_allclose(found[doc["id"]]["scores"], expected, atol=1e-5)
    assert found != {row["id"]: row for row in score(inputs, args)}


def test_each_passage_is_encoded_once(inputs, args, monkeypatch):
    from utils.retrieval.encoder import TextEncoder

    seen = []
    inner = TextEncoder.encode
    monkeypatch.setattr(
        TextEncoder, "encode", lambda self, texts, size=64: (seen.extend(texts), inner(self, texts, size))[1]
    )
    score(inputs, args)
    used = {pid for doc in inputs.docs for pid in doc["passage_ids"]}
    assert len(seen) == len(set(seen)) == len(used) + len(inputs.docs)


def test_passages_of_equal_text_get_one_score_whatever_batch_they_are_in(inputs, args, monkeypatch):
    from utils.training import scores

    monkeypatch.setattr(scores, "BATCHES_PER_FILE", 1)
    texts = inputs.texts | {f"twin{i}": inputs.texts["p8"] for i in range(3)}
    write_jsonl(inputs.folder / "docs.passages.jsonl", [{"id": k, "contents": v} for k, v in texts.items()])
    twins = ["twin0", "p1", "twin1", "p15", "p22", "p8", "twin2"]
    for doc in inputs.docs:
        doc["passage_ids"] = twins + [pid for pid in doc["passage_ids"] if pid not in twins]
        doc["scores"] = [1.0] * len(doc["passage_ids"])
    write_jsonl(inputs.folder / "docs.jsonl", inputs.docs)
    for row in score(inputs, args):
        found = [
            (pid, s) for pid, s in zip(row["passage_ids"], row["scores"], strict=True) if texts[pid] == texts["p8"]
        ]
        assert [pid for pid, _ in found] == ["twin0", "twin1", "p8", "twin2"]
        assert len({score for _, score in found}) == 1


def test_a_stopped_scoring_goes_on_where_it_was(inputs, args, monkeypatch):
    from utils.retrieval.encoder import TextEncoder
    from utils.training import scores

    whole = score(inputs, args, "whole.jsonl")
    monkeypatch.setattr(scores, "BATCHES_PER_FILE", 1)
    inner, encoded = TextEncoder.encode, []

    def stop_at_fourth(self, texts, size=64):
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(texts)
        return inner(self, texts, size)

    monkeypatch.setattr(TextEncoder, "encode", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        score(inputs, args)
    again = []
    monkeypatch.setattr(TextEncoder, "encode", lambda self, t, size=64: (again.append(t), inner(self, t, size))[1])
    assert score(inputs, args) == whole
    assert not {text for batch in encoded for text in batch} & {text for batch in again for text in batch}
    assert not (inputs.folder / "embeddings").exists()


def test_questions_without_rationale_are_left_out(inputs, args, capsys):
    rows = read_jsonl(inputs.folder / "reason.jsonl")
    write_jsonl(inputs.folder / "reason.jsonl", rows[3:])
    assert [row["id"] for row in score(inputs, args)] == [row["id"] for row in rows[3:]]
    assert "3 questions without a rationale" in capsys.readouterr().out


def test_a_rationale_of_another_question_is_refused(inputs, args):
    rows = read_jsonl(inputs.folder / "reason.jsonl")
    rows[2]["question"] = "another question with the same id"
    write_jsonl(inputs.folder / "reason.jsonl", rows)
    with pytest.raises(UsageError, match="'q2'.*same train.jsonl"):
        score(inputs, args)


def test_retrieval_scores_are_the_retrievers(inputs, tmp_path):
    retrieval_scores(inputs.folder / "docs.jsonl", tmp_path / "cache.jsonl", overwrite=False)
    for row, doc in zip(read_jsonl(tmp_path / "cache.jsonl"), inputs.docs, strict=True):
        assert row == {"id": doc["id"], "query": doc["question"], **{k: doc[k] for k in ("passage_ids", "scores")}}


@pytest.fixture(scope="module")
def tiny_bge_m3(tmp_path_factory, tokenizer):
    """A random XLM-R in BGE-M3's file layout."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("bge-m3")
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=514, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    transformers.XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(torch.nn.Linear(32, 32).state_dict(), folder / "colbert_linear.pt")
    torch.save(torch.nn.Linear(32, 1).state_dict(), folder / "sparse_linear.pt")
    return folder


def test_bge_m3_runs_through_flagembedding(inputs, args, tiny_bge_m3):
    """The real BGE-M3 code on a tiny model: cls pooling, normalised, inner products."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    args.scorer, args.model_path = "bge-m3", str(tiny_bge_m3)
    found = score(inputs, args)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bge_m3), AutoModel.from_pretrained(tiny_bge_m3).eval()

    def encode(text):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, truncation=True, max_length=64, return_tensors="pt")).last_hidden_state
        return torch.nn.functional.normalize(hidden[0, 0], dim=-1).numpy()

    for row, doc in zip(found, inputs.docs, strict=True):
        query = encode(f"{doc['question']}. {doc['golden_answers']}. since {doc['id']} says so")
        expected = sorted((float(encode(inputs.texts[pid]) @ query) for pid in doc["passage_ids"]), reverse=True)
        np.testing.assert_allclose(row["scores"], expected, atol=1e-5)


def test_a_scorer_pools_as_its_model_declares(inputs, args, tiny_encoder, tmp_path, capsys):
    from utils.retrieval.encoder import TextEncoder

    folder = shutil.copytree(tiny_encoder, tmp_path / "cls")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    args.model_path, args.scorer_pooling_method = str(folder), None
    found = score(inputs, args)[0]
    assert f"{folder} declares cls pooling, which is used; --scorer_pooling_method" in capsys.readouterr().err
    encoder, doc = TextEncoder(str(folder), 64, "cls"), inputs.docs[0]
    query = encoder.encode([f"{doc['question']}. {doc['golden_answers']}. since {doc['id']} says so"])[0]
    best = encoder.encode([inputs.texts[found["passage_ids"][0]]])[0]
    assert found["scores"][0] == pytest.approx(float(best @ query), abs=1e-5)


def test_two_runs_of_one_dataset_are_refused(inputs, args):
    (inputs.folder / "embeddings").mkdir()
    with (
        locked(inputs.folder / "embeddings"),
        pytest.raises(UsageError, match="is being written by another run"),
    ):
        score(inputs, args)


def test_embeddings_of_other_inputs_are_not_taken_whenever_their_removal_ends(inputs, args, monkeypatch):
    from utils.retrieval import encoder

    def end(folder):
        (folder / encoder.MADE_WITH).unlink()
        raise KeyboardInterrupt

    expected = score(inputs, args)
    folder = inputs.folder / "embeddings/passages"
    folder.mkdir(parents=True)
    (folder / encoder.MADE_WITH).write_text("another key")
    np.save(folder / "00000.npy", np.zeros((12, 32), dtype=np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(encoder.shutil, "rmtree", end)
        with pytest.raises(KeyboardInterrupt):
            score(inputs, args, "again.jsonl")
    assert (folder / "00000.npy").exists()
    assert score(inputs, args, "again.jsonl") == expected


def test_a_run_that_ends_while_another_begins_takes_no_folder_from_it(inputs, args, monkeypatch):
    """The first removes its folder after the second has looked at the output, and before that has the lock."""
    import shutil

    from utils.training import scores

    (inputs.folder / "embeddings").mkdir()

    def after_the_other(path):
        shutil.rmtree(inputs.folder / "embeddings")
        return locked(path)

    monkeypatch.setattr(scores, "locked", after_the_other)
    assert len(score(inputs, args)) == 12


def test_bge_m3_gives_the_same_vectors_compiled(tiny_bge_m3):
    from utils.openvino_model import WORTHWHILE, OpenVINOModel
    from utils.retrieval.encoder import BgeM3Encoder

    pytest.importorskip("openvino")
    texts = ["a word", "some more words than that", "and so on " * 60, *(f"passage {i} " * i for i in range(1, 30))]
    plain, compiled = (BgeM3Encoder(str(tiny_bge_m3), 256, texts=count) for count in (0, WORTHWHILE))
    assert isinstance(compiled.model.model.model, OpenVINOModel)
    np.testing.assert_allclose(compiled.encode(texts, 8), plain.encode(texts, 8), atol=1e-6)
