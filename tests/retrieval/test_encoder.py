import pytest
import torch

from utils.config import UsageError
from utils.retrieval.encoder import POOLING, TextEncoder


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
