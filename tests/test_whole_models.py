"""A model is used only if it has loaded whole: tokenizer, weights, head."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import without_tokenizer

from utils.config import UsageError
from utils.devices import load_classifier, load_model, load_tokenizer
from utils.rag.generators import make_generator
from utils.rag.rerankers import LengthSortedReranker
from utils.retrieval.encoder import BgeM3Encoder, TextEncoder
from utils.training.finetune import check_base_model

NO_WORD = r"its tokenizer knows no word: are tokenizer files \(tokenizer.json, vocab.txt, ...\) missing"


def settings(path, **changes):
    fixed = {
        "trust_remote_code": [], "rerank_model_path": str(path), "rerank_max_length": 64, "rerank_batch_size": 4,
        "use_fp16": False, "base_model": str(path), "query_max_len": 16, "passage_max_len": 48, "framework": "hf",
        "model_path": str(path), "generator_batch_size": 2, "max_input_tokens": 64, "max_tokens": 4, "stop": [],
        "quantization": "none", "save_dir": str(path),
    }  # fmt: skip
    return SimpleNamespace(**fixed | changes)


USERS = {
    "retriever": lambda path: TextEncoder(str(path), 64),
    "scorer BGE-M3": lambda path: BgeM3Encoder(str(path), 64),
    "reranker": lambda path: LengthSortedReranker(settings(path)),
    "base of fine-tuning": lambda path: check_base_model(str(path), settings(path)),
    "generator": lambda path: make_generator(settings(path)),
}


def edited(model, folder, edit):
    """Copy a model with other weights: ``edit`` changes the dict of tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_config(model, folder, **changes):
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("left", ["nothing", "a configuration"])
def test_a_folder_without_words_is_refused(user, left, tiny_encoder, tiny_reranker, tiny_llama, tmp_path):
    model = {"reranker": tiny_reranker, "generator": tiny_llama}.get(user, tiny_encoder)
    folder = without_tokenizer(model, tmp_path / "bare")
    if left == "a configuration":
        shutil.copy(model / "tokenizer_config.json", folder)
    with pytest.raises(UsageError, match=f"bare: {NO_WORD}|bare cannot be loaded by AutoTokenizer"):
        USERS[user](folder)


@pytest.mark.parametrize(
    "kind",
    ["Albert", "Bert", "Deberta", "DebertaV2", "DistilBert", "Electra", "GPT2", "GPTNeoX", "Gemma", "Llama", "MPNet",
     "Mistral", "ModernBert", "Qwen2", "Roberta", "T5", "XLMRoberta"],
)  # fmt: skip
def test_no_architecture_gets_a_tokenizer_out_of_nothing(kind, tmp_path):
    import transformers

    getattr(transformers, f"{kind}Config")(architectures=[f"{kind}Model"]).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"{NO_WORD}|cannot be loaded by AutoTokenizer"):
        load_tokenizer(str(tmp_path), trust=False)


@pytest.mark.parametrize("words", [["the", "##r", "river"], ["水"], ["4", "##2", "2"], ["и", "##р", "река"]])
def test_a_tokenizer_that_knows_a_word_of_some_language_is_taken(words, tmp_path):
    import transformers

    transformers.BertConfig().save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    assert len(load_tokenizer(str(tmp_path), trust=False)) == 5 + len(words)


def test_a_tokenizer_of_bytes_is_taken(tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(["the river and the castle"], vocab_size=300)
    PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, eos_token="e").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), trust=False).pad_token == "e"


def test_the_tokenizer_of_another_model_is_refused(tiny_encoder, tmp_path):
    def halve(weights):
        rows = weights["embeddings.word_embeddings.weight"]
        weights["embeddings.word_embeddings.weight"] = rows[:1000].clone()

    folder = edited(with_config(tiny_encoder, tmp_path / "small", vocab_size=1000), tmp_path / "other", halve)
    with pytest.raises(UsageError, match="its tokenizer has 30522 words, but the model knows 1000"):
        TextEncoder(str(folder), 64)


MISSING = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize("user", [user for user in USERS if user != "generator"])
def test_missing_weights_are_refused_by_name(user, tiny_encoder, tiny_reranker, tmp_path):
    model, prefix = (tiny_reranker, "bert.") if user == "reranker" else (tiny_encoder, "")
    folder = edited(model, tmp_path / "part", lambda weights: weights.pop(prefix + MISSING))
    with pytest.raises(UsageError, match=rf"part is no whole Bert\w+: {prefix}{MISSING} is missing"):
        USERS[user](folder)


def test_an_encoder_that_is_given_as_generator_is_refused(tiny_encoder):
    with pytest.raises(UsageError, match=r"is no whole BertLMHeadModel: cls\..* is missing"):
        USERS["generator"](tiny_encoder)


def test_weights_of_another_size_and_damaged_files_are_refused(tiny_encoder, tmp_path):
    folder = with_config(tiny_encoder, tmp_path / "wide", intermediate_size=128)
    with pytest.raises(UsageError, match=r"encoder\.layer\.0\S+ is \[64, 32\], not \[128, 32\]"):
        TextEncoder(str(folder), 64)
    folder = with_config(tiny_encoder, tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(UsageError, match=r"encoder\.layer\.2\.\S+ is missing; .* and \d+ more"):
        TextEncoder(str(folder), 64)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UsageError, match="deep cannot be loaded by AutoModel"):
        TextEncoder(str(folder), 64)
    weights.unlink()
    with pytest.raises(UsageError, match="deep cannot be loaded by AutoModel"):
        TextEncoder(str(folder), 64)


def test_a_pooler_may_be_missing_where_it_is_not_used(tiny_encoder, tmp_path):
    def drop(weights):
        for name in [name for name in weights if name.startswith("pooler.")]:
            del weights[name]

    folder = edited(tiny_encoder, tmp_path / "plain", drop)
    expected = TextEncoder(str(tiny_encoder), 64).encode(["a river"])
    np.testing.assert_array_equal(TextEncoder(str(folder), 64).encode(["a river"]), expected)
    with pytest.raises(UsageError, match=r"pooler\.dense\.bias is missing"):
        TextEncoder(str(folder), 64, "pooler")


def test_a_model_without_a_score_is_no_reranker(tiny_encoder, tiny_llama, tiny_reranker, tmp_path):
    for model in (tiny_encoder, tiny_llama):
        with pytest.raises(
            UsageError, match="has no head for one score: an encoder becomes a reranker by run_finetune"
        ):
            USERS["reranker"](model)
    for claim in (["BertForSequenceClassification"], None):  # the configuration says so, or says nothing
        folder = with_config(tiny_encoder, tmp_path / str(claim), architectures=claim, id2label={"0": "LABEL_0"})
        with pytest.raises(UsageError, match=r"is no whole BertForSequenceClassification: classifier\.bias is missing"):
            USERS["reranker"](folder)
    silent = with_config(tiny_reranker, tmp_path / "silent", architectures=None)
    assert len(LengthSortedReranker(settings(silent)).score(["q"], [["a", "b"]])[0]) == 2


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("user", ["reranker", "base of fine-tuning"])
def test_a_classifier_with_several_labels_is_refused(user, labels, tokenizer, tmp_path):
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_labels=labels
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"has {labels} labels; one is needed"):
        USERS[user](tmp_path)


def test_an_encoder_is_a_base_and_its_new_head_is_told(tiny_encoder, tiny_llama, tiny_reranker, capsys):
    for model in (tiny_encoder, tiny_llama):
        check_base_model(str(model), settings(model))
        assert f"note: {model} has no head for one score; training begins with a random one" in capsys.readouterr().err
    check_base_model(str(tiny_reranker), settings(tiny_reranker))
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "GPT2"])
def test_a_decoder_without_a_pad_token_scores_alike_in_any_batch(kind, tiny_decoders):
    """The end token pads, and the score is read where the pair ends."""
    folder = str(tiny_decoders[kind])
    texts = [f"passage {i} " + "of the river " * (i % 5) for i in range(13)]
    found = [
        LengthSortedReranker(settings(folder, rerank_batch_size=size)).score(["which river"], [texts])[0]
        for size in (1, 4, 64)
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    # transformers gives Qwen2's tokenizer a pad token that this model does not know.
    assert (tokenizer.pad_token_id, model.config.pad_token_id) == (30522 if kind == "Qwen2" else None, None)
    with torch.inference_mode():
        pairs = (tokenizer("which river", text, return_tensors="pt") for text in texts)
        alone = [model.eval()(**pair).logits.item() for pair in pairs]
    np.testing.assert_allclose(found[1], alone, atol=1e-5)
    assert len(set(np.round(alone, 4))) == 13


def test_a_decoder_s_own_pad_token_is_the_one_that_its_score_looks_for(tiny_decoders, tmp_path):
    """The tokenizer pads with one token, the configuration names another: the tokenizer's counts."""
    folder = with_config(tiny_decoders["Llama"], tmp_path / "two", pad_token_id=0)
    texts = [f"passage {i} " + "of the river " * (i % 5) for i in range(7)]
    one, many = (
        LengthSortedReranker(settings(folder, rerank_batch_size=size)).score(["which"], [texts])[0] for size in (1, 7)
    )
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_a_tokenizer_without_pad_and_end_token_is_refused(unpadded, tmp_path):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=unpadded).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="neither a pad token nor an end token"):
        load_tokenizer(str(tmp_path), trust=False)


def test_whole_models_load(tiny_encoder, tiny_reranker):
    from transformers import AutoModel

    assert not load_model(AutoModel, str(tiny_encoder), False, load_tokenizer(str(tiny_encoder), False)).training
    tokenizer, model = load_classifier(str(tiny_reranker), False)
    assert (tokenizer.pad_token_id, model.config.pad_token_id, model.training) == (0, 0, False)
