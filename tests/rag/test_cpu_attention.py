"""Grouped attention of one token against torch's own."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from utils.rag.cpu_attention import attention, quicken


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_one_token_is_given_what_torchs_attention_gives_it(key_heads, scaling, masked):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, key_heads, 11, 8), torch.randn(3, key_heads, 11, 8)
    mask = torch.ones(3, 1, 1, 11, dtype=torch.bool)
    mask[0, ..., :4] = mask[1, ..., :9] = False
    mask = mask if masked else None
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, scale=scaling, enable_gqa=True
    ).transpose(1, 2)
    found, weights = attention(None, query, key, value, mask, scaling=scaling)
    assert weights is None
    torch.testing.assert_close(found, expected)


def test_a_model_generates_the_same_tokens_with_padding_and_keeps_another_choice(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.randint(1, 50, (4, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[3, :8] = 0
    found = {}
    for kind in ("plain", "quick", "eager"):
        options = {"attn_implementation": "eager"} if kind == "eager" else {}
        model = AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()
        if kind != "plain":
            quicken(model)
        assert model.config._attn_implementation == {"plain": "sdpa", "quick": "grouped", "eager": "eager"}[kind]
        with torch.inference_mode():
            found[kind] = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert len(set(found["plain"][0, 9:].tolist())) > 3, "a model that repeats one token shows nothing"
    assert torch.equal(found["plain"], found["quick"])
    assert torch.equal(found["plain"], found["eager"])
