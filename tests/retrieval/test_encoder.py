import json
import shutil

import numpy as np
import pytest
import torch
from conftest import questions, read_jsonl, write_jsonl

from utils import devices
from utils.config import UsageError
from utils.retrieval.encoder import POOLING, TextEncoder, declared_pooling, pooling_method


@pytest.mark.parametrize("pooling", POOLING)
def test_vectors_are_pooled_as_flashrag_pools_them(tiny_encoder, pooling):
    from flashrag.retriever.utils import pooling as flashrags

    texts = ["the river", "a castle and a longer text beside it", "number 7 of the rivers"]
    encoder = TextEncoder(str(tiny_encoder), 64, pooling)
    inputs = encoder.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = encoder.model(**inputs)
    expected = flashrags(found.pooler_output, found.last_hidden_state, inputs["attention_mask"], pooling)
    assert torch.equal(encoder._pooled(found, inputs["attention_mask"][..., None]), expected)


def test_an_unknown_pooling_is_refused(tiny_encoder):
    with pytest.raises(UsageError, match="'max' is none of mean, cls, pooler"):
        TextEncoder(str(tiny_encoder), 64, "max")


def declaring(folder, pooling, *modules, place="1_Pooling"):
    """Write what sentence-transformers writes into a model's folder."""
    (folder / place).mkdir(parents=True)
    (folder / place / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | pooling))
    if modules:
        rows = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
        (folder / "modules.json").write_text(json.dumps(rows))
    return str(folder)


OLD = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
BEGIN = ("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")
DECLARED = [
    (OLD | {"pooling_mode_cls_token": True}, (), "cls"),
    (OLD | {"pooling_mode_mean_tokens": True}, (), "mean"),
    ({"pooling_mode_mean_sqrt_len_tokens": True}, (), "mean"),
    (OLD, (), None),
    (OLD | {"pooling_mode_lasttoken": True}, (), "lasttoken"),
    (OLD | {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, (), "mean + max"),
    ({"pooling_mode": "cls", "include_prompt": True}, (), "cls"),
    ({"pooling_mode": ["cls", "mean"]}, (), "cls + mean"),
    ({"pooling_mode": "mean", "include_prompt": False}, (), "mean + without the prompt"),
    ({"pooling_mode": "cls"}, (*BEGIN, ("2_Normalize", "sentence_transformers.models.Normalize")), "cls"),
    ({"pooling_mode": "cls"}, (*BEGIN, ("2_Dense", "sentence_transformers.models.Dense")), "cls + Dense"),
]


@pytest.mark.parametrize(("pooling", "modules", "expected"), DECLARED)
def test_what_a_model_declares_is_read(pooling, modules, expected, tmp_path):
    name = declaring(tmp_path, pooling, *modules)
    assert declared_pooling(name) == expected
    if expected in (*POOLING, None):
        assert pooling_method(name, None) == (expected or "mean")
    else:
        with pytest.raises(UsageError, match=r"declares the pooling '.*', which is none of mean, cls, pooler"):
            pooling_method(name, None)
    assert pooling_method(name, "pooler") == "pooler"


def test_sentence_transformers_reads_the_same(tmp_path):
    from sentence_transformers.models import Pooling

    for i, (pooling, modules, expected) in enumerate(DECLARED):
        if not modules and pooling.get("include_prompt", True):
            name = declaring(tmp_path / str(i), pooling)
            found = Pooling.load(f"{name}/1_Pooling").pooling_mode
            names = [found] if isinstance(found, str) else found
            assert {name.removesuffix("_sqrt_len_tokens") for name in names} == set((expected or "mean").split(" + "))


def test_the_pooling_s_folder_is_the_one_that_the_model_names(tmp_path):
    modules = BEGIN[0], ("3_Pool", "sentence_transformers.sentence_transformer.modules.pooling.Pooling")
    assert declared_pooling(declaring(tmp_path, {"pooling_mode": "cls"}, *modules, place="3_Pool")) == "cls"


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_declaration_is_told(text, tmp_path):
    declaring(tmp_path, {})
    (tmp_path / "1_Pooling/config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match="1_Pooling/config.json is damaged: a JSON object is expected"):
        declared_pooling(str(tmp_path))


def test_a_model_of_the_hub_is_asked_for_its_declaration(tmp_path, monkeypatch, capsys):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    declaring(tmp_path, {"pooling_mode": "cls"})

    class AbsentError(RemoteEntryNotFoundError):
        def __init__(self):
            Exception.__init__(self)

    def download(name, file):
        if name == "offline/model":
            raise LocalEntryNotFoundError("no network")
        if not (tmp_path / file).exists():
            raise AbsentError
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    devices._hub_file.cache_clear()
    assert pooling_method("some/model", None) == "cls"
    assert capsys.readouterr().err == ""
    assert pooling_method("offline/model", None) == "mean"
    assert "the hub cannot be asked whether offline/model has 1_Pooling/config.json" in capsys.readouterr().err
    devices._hub_file.cache_clear()


@pytest.fixture
def cls_encoder(tiny_encoder, tmp_path):
    return declaring(shutil.copytree(tiny_encoder, tmp_path / "cls"), OLD | {"pooling_mode_cls_token": True})


def test_a_retriever_pools_as_its_model_declares_from_the_index_to_the_run(cls_encoder, corpus, run_script, tmp_path):
    import faiss

    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(3))
    write_jsonl(tmp_path / "dataset/own/test.jsonl", questions(3))
    shared = ["--retriever_path", cls_encoder, "--corpus_path", corpus, "--index_path", "own.index"]
    commands = {
        "index": ["build_index.py", *shared],
        "docs": ["dataset_generation.py", "--dataset=own", "--phase=get_docs", *shared],
        "rag": ["run_rag.py", "--dataset=own", "--framework=none", *shared],
    }
    for words in commands.values():
        result = run_script(*words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"{cls_encoder} declares cls pooling, which is used; --retrieval_pooling_method" in result.stderr
    index = faiss.read_index(str(tmp_path / "own.index"))
    texts = ["passage: " + row["contents"] for row in read_jsonl(corpus)]
    expected = TextEncoder(cls_encoder, 512, "cls").encode(texts)
    np.testing.assert_allclose(index.reconstruct_n(0, 60), expected, atol=1e-5)
    for name in ("own.index", "dataset/own/train_docs_20000.jsonl", "output/own_test_none_none/intermediate_data.json"):
        made = json.loads((tmp_path / f"{name}.manifest.json").read_text())
        assert made["settings"]["retrieval_pooling_method"] == "cls"
    for words in commands.values():
        result = run_script(*words, cwd=tmp_path)
        assert "is finished" in result.stdout or "recall@1" in result.stdout
    result = run_script(*commands["docs"], "--retrieval_pooling_method=mean", cwd=tmp_path)
    assert result.returncode == 2
    assert "own.index was made with --retrieval_pooling_method cls, not mean" in result.stderr


def test_a_pooling_setting_wins_over_the_declaration_and_is_told(cls_encoder, corpus, run_script, tmp_path):
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(3))
    words = ["build_index.py", "--retriever_path", cls_encoder, "--corpus_path", corpus, "--index_path", "own.index"]
    result = run_script(*words, "--retrieval_pooling_method", "mean", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"--retrieval_pooling_method mean is used, although {cls_encoder} declares cls" in result.stderr
    made = json.loads((tmp_path / "own.index.manifest.json").read_text())
    assert made["settings"]["retrieval_pooling_method"] == "mean"
    assert "own.index was made with --retrieval_pooling_method mean" in (
        run_script("dataset_generation.py", "--dataset=own", "--phase=get_docs", *words[1:], cwd=tmp_path).stderr
    )


def test_a_model_that_declares_nothing_is_pooled_by_mean_without_a_word(tiny_encoder, capsys):
    assert pooling_method(str(tiny_encoder), None, "retrieval_pooling_method") == "mean"
    assert pooling_method(str(tiny_encoder), "cls", "retrieval_pooling_method") == "cls"
    assert capsys.readouterr().err == ""


def test_the_profiles_encoder_declares_mean(capsys):
    from quickstart.models import minilm_path

    assert pooling_method(str(minilm_path()), None, "retrieval_pooling_method") == "mean"
    assert capsys.readouterr().err == ""
