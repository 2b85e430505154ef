"""What happens when a batch does not fit: halved, said, and nothing else changes."""

import pytest
import torch

from utils.config import UsageError
from utils.devices import in_batches
from utils.rag.rerankers import LengthSortedReranker
from utils.retrieval.encoder import TextEncoder

TEXTS = [f"text {'long ' * (i % 7)}{i}" for i in range(23)]


def limited(module, most):
    """A model whose memory holds ``most`` texts."""
    inner = module.forward

    def forward(input_ids, **inputs):
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(input_ids=input_ids, **inputs)

    module.forward = forward


def test_an_encoder_out_of_memory_gives_the_same_rows(tiny_encoder, capsys):
    encoder = TextEncoder(str(tiny_encoder), 64)
    expected = encoder.encode(TEXTS, batch_size=16)
    limited(encoder.model, 5)
    assert abs(encoder.encode(TEXTS, batch_size=16) - expected).max() < 1e-6
    said = capsys.readouterr().err
    assert "with 16 at once; going on with 8" in said
    assert "going on with 4" in said
    encoder.encode(TEXTS, batch_size=16)
    assert capsys.readouterr().err == "", "what has been learnt once is not learnt again"


def test_a_reranker_out_of_memory_gives_the_same_scores(tiny_reranker, capsys):
    from types import SimpleNamespace

    args = SimpleNamespace(
        trust_remote_code=[],
        rerank_model_name="tiny", rerank_model_path=str(tiny_reranker), rerank_topk=5, rerank_max_length=64,
        rerank_batch_size=16, use_fp16=False,
    )  # fmt: skip
    reranker = LengthSortedReranker(args)
    expected = reranker.score(["a question"], [TEXTS])
    limited(reranker.ranker, 3)
    assert reranker.score(["a question"], [TEXTS])[0] == pytest.approx(expected[0], abs=1e-5)
    assert "going on with 2" in capsys.readouterr().err


def test_one_item_that_does_not_fit_is_told():
    def work(part):
        raise torch.OutOfMemoryError

    with pytest.raises(UsageError, match="one item at once"):
        in_batches([1, 2, 3], 2, work)
    assert in_batches([], 4, work) == 4


def test_shorter_items_form_larger_batches_of_like_length_and_memory_is_learnt_in_their_unit(capsys):
    seen = []

    def work(part):
        if len(part) * part[0] > 40:
            raise torch.OutOfMemoryError
        seen.append(list(part))

    lengths = [90, 20, 20, 20, 10, 10, 10, 10, 3, 3]
    with pytest.raises(UsageError, match="one item at once"):
        in_batches(lengths, 80, work, need=lambda length: length)
    assert in_batches(lengths[1:], 80, work, need=lambda length: length) == 20
    assert seen == [[20], [20], [20], [10, 10], [10, 10], [3, 3]]
    assert "with 3 at once; going on with 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "positions", "tokens", "most"),
    [
        ("bert", 512, 10**30, 512),
        ("bert", 512, 256, 256),
        ("xlm-roberta", 514, 10**30, 512),
        ("xlm-roberta", 8194, 8192, 8192),
    ],
)
def test_the_longest_input_is_the_positions_and_the_tokenizers(kind, positions, tokens, most, capsys):
    from types import SimpleNamespace

    from utils.devices import fitting_length

    config = SimpleNamespace(model_type=kind, max_position_embeddings=positions, pad_token_id=1, name_or_path="m")
    tokenizer = SimpleNamespace(model_max_length=tokens)
    assert fitting_length(10**6, tokenizer, config) == most
    assert f"m takes {most} tokens; texts are cut there" in capsys.readouterr().err
    assert fitting_length(10, tokenizer, config) == 10
    assert capsys.readouterr().err == ""
