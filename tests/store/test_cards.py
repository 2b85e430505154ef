"""Cards of rerankers and rationales: what they claim follows the manifests, and the hub's own library reads them."""

import json
import warnings
from types import SimpleNamespace

import pytest
from conftest import write_jsonl
from huggingface_hub import DatasetCard, ModelCard

from utils.config import load_config
from utils.store.cards import MARK, Score, write_dataset_card, write_model_card
from utils.store.manifest import Phase, fingerprint, manifest_path

SCORES = [
    Score("nq", "test", "mrr", "", 0.48612, 0.45, 0.52, 636, {"retriever's order": 0.455, "base reranker": None}),
    Score("nq", "test", "em", "llama", 0.25, None, None, 4, {"retriever's order": 0.5, "base reranker": 0.25}),
]


def loaded(kind, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return kind.load(path)


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config()
    return SimpleNamespace(**config["common"], **config["finetune"])


@pytest.fixture
def reranker(tmp_path, args):
    """Make a fine-tuned folder's manifest, with groups of these settings."""

    def make(base="BAAI/bge-reranker-base", chosen=None, train_data="dataset/nq/reason+retrieval/lines.jsonl"):
        lines, folder = tmp_path / train_data, tmp_path / "checkpoints/new"
        lines.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(lines, [{"query": "q", "pos": ["p"], "neg": ["n"]}])
        if chosen is not None:
            Phase(train_data, [], chosen).finish(1)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        settings = {key: getattr(args, key) for key in ("train_group_size", "query_max_len", "passage_max_len")}
        losses = {"losses": [{"loss": 2.0}, {"loss": 0.5}], "pairs per second": 30.0}
        Phase("checkpoints/new", [train_data, base], settings, folder=True).finish(7, facts=losses)
        return folder

    return make


def test_the_numbers_are_read_back_by_the_hubs_library(reranker, args):
    folder = reranker(chosen={"reason_weight": 0.5})
    write_model_card(folder, args, SCORES)
    card = loaded(ModelCard, folder / "README.md")
    assert card.data.base_model == "BAAI/bge-reranker-base"
    assert card.data.pipeline_tag == "text-ranking"
    found = [(r.task_type, r.dataset_type, r.metric_type, r.metric_value) for r in card.data.eval_results]
    assert found == [("text-ranking", "nq", "mrr", 0.4861), ("question-answering", "nq", "em", 0.25)]
    assert "| nq, test | mrr | 636 | 0.486 [0.450, 0.520] | 0.455 | - |" in card.text
    assert "| nq, test | em, llama | 4 | 0.250 | 0.500 | 0.250 |" in card.text
    assert "7 groups: `dataset/nq/reason+retrieval/lines.jsonl`, made by `python" in card.text
    assert "loss 2.000 at first, 0.500 at last; 30 question-passage pairs per second" in card.text
    assert "those of `nq` (licence: cc-by-sa-3.0)" in card.text


@pytest.mark.parametrize(
    ("chosen", "train_data", "told", "not_told"),
    [
        ({"reason_weight": 0.25}, "dataset/nq/reason+retrieval/x.jsonl", "0.25 x similarity to", "answer matching"),
        ({"reason_weight": 1.0}, "dataset/nq/answer_only+retrieval/x.jsonl", "question and gold answer + 0.0 x", "LLM"),
        ({"reason_weight": 0.0, "supervised": True}, "dataset/nq/a/x.jsonl", "by answer matching", "and gold answer +"),
        ({"reason_weight": 1.0}, "dataset/nq/retrieval/x.jsonl", "+ 1.0 x the retriever's score", "1.0 x similarity"),
        ({"reason_weight": 0.9}, "dataset/nq/answer_only_v2+retrieval/x.jsonl", "of it + 0.1 x", "1.0 x"),
        ({"sampled": 3}, "dataset/nq/x.jsonl", "fine-tuned from", "nobody labelled"),
        (None, "my/x.jsonl", "name them and their licence here", "as in RADIO"),
    ],
)  # fmt: skip
def test_a_card_claims_only_what_the_groups_manifest_says(reranker, args, chosen, train_data, told, not_told):
    folder = reranker(chosen=chosen, train_data=train_data)
    write_model_card(folder, args)
    text = (folder / "README.md").read_text()
    assert told in " ".join(text.split())
    assert not_told not in text
    assert loaded(ModelCard, folder / "README.md").data.eval_results is None


def test_a_base_on_the_disk_is_no_id_of_the_hub(reranker, args, tmp_path):
    (tmp_path / "models/base").mkdir(parents=True)
    folder = reranker(base="models/base")
    (tmp_path / "models/base").rmdir()  # moved away after the training
    write_model_card(folder, args)
    card = loaded(ModelCard, folder / "README.md")
    assert card.data.base_model is None
    assert "fine-tuned from `models/base`" in card.text


def test_a_card_that_a_user_has_taken_over_is_kept(reranker, args):
    folder = reranker()
    write_model_card(folder, args)
    write_model_card(folder, args, SCORES)
    card = folder / "README.md"
    assert "## Results" in card.read_text()
    card.write_text(card.read_text().replace(MARK, "") + "Written by hand.")
    write_model_card(folder, args)
    assert "## Results" in card.read_text()
    assert card.read_text().endswith("Written by hand.")


def test_the_card_is_no_part_of_the_model_but_other_texts_are(reranker, args):
    folder = reranker()
    before = fingerprint(folder)
    write_model_card(folder, args)
    assert fingerprint(folder) == before == json.loads(manifest_path(folder).read_text())["output_sha256"]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/README.md").write_text("x")
    assert fingerprint(folder) != before


@pytest.mark.slow
def test_a_folder_of_rationales_loads_as_a_data_set(args, tmp_path):
    from datasets import load_dataset

    rows = [{"id": str(i), "question": f"q{i}", "golden_answers": ["a"], "reason": "r"} for i in range(3)]
    rationales = tmp_path / "dataset/nq/reason/train_with_reason.jsonl"
    rationales.parent.mkdir(parents=True)
    write_jsonl(rationales, rows)
    write_jsonl(rationales.with_name("failures.jsonl"), [{"other": 1}])
    settings = {
        "model": "gpt-4o-mini",
        "rationale_completion": None,
        "temperature": 0.2,
        "rationale_system": "Say why.",
        "rationale_user": "{question}",
    }
    asked = {"prompt_tokens": 30, "completion_tokens": 60}
    Phase(rationales, ["dataset/nq/train.jsonl"], settings).finish(3, {"questions without a rationale": 2}, facts=asked)
    write_dataset_card(rationales, args)
    card = loaded(DatasetCard, rationales.with_name("README.md"))
    assert card.data.license == "cc-by-sa-3.0"
    for told in ("The LLM `gpt-4o-mini`", "temperature 0.2", "    Say why.\n    {question}", "30 tokens asked and 60"):
        assert told in card.text
    assert "2 questions without a rationale." in card.text
    found = load_dataset(str(rationales.parent), cache_dir=str(tmp_path / "cache"))["train"]
    assert list(found) == rows


def test_imported_rationales_have_a_card_that_names_the_files_and_no_llm(args, tmp_path):
    rationales = tmp_path / "dataset/mine/reason/train_with_reason.jsonl"
    rationales.parent.mkdir(parents=True)
    write_jsonl(rationales, [{"id": "1"}])
    Phase(rationales, ["dataset/mine/train.jsonl", "theirs.parquet"], {"train_questions": 0}).finish(1)
    args.dataset = "mine"
    write_dataset_card(rationales, args)
    card = loaded(DatasetCard, rationales.with_name("README.md"))
    assert card.data.license == "unknown"
    assert "imported from `theirs.parquet`; the script that wrote this card does not know who wrote them" in card.text
    args.data_license = "mit"
    write_dataset_card(rationales, args)
    assert loaded(DatasetCard, rationales.with_name("README.md")).data.license == "mit"
