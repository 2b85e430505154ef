"""Dense text encoders: one call over all texts, sorted by length."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from utils.config import UsageError
from utils.devices import autocast, fitting_length, half_precision, in_batches, local_model, pretrained, torch_device
from utils.openvino_model import fastest

Embeddings = NDArray[np.float32]


class Encoder(Protocol):
    """Texts -> normalised float32 rows of shape ``(texts, dimension)``."""

    dimension: int

    def encode(self, texts: list[str], batch_size: int = 64) -> Embeddings:
        """Encode texts in any order."""


def length_order(texts: Sequence[str]) -> list[int]:
    """Indices from the longest text to the shortest: the first batch shows whether memory suffices."""
    return sorted(range(len(texts)), key=lambda i: -len(texts[i]))


class TextEncoder:
    """Any Hugging Face encoder with mean, cls or pooler pooling.

    Args:
        path: folder or hub id.
        max_length: tokens; longer texts are cut.
        pooling: ``mean``, ``cls`` or ``pooler``.
        half: fp16, on a GPU only.
        prefix: put before every text, such as e5's "query: ".
        trust: run code that the model brings.
        texts: about how many will be encoded: many are worth the time of `utils.openvino_model`.
    """

    def __init__(
        self,
        path: str,
        max_length: int,
        pooling: str = "mean",
        half: bool = False,
        prefix: str = "",
        trust: bool = False,
        texts: int = 0,
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        path = local_model(path)
        self.tokenizer: Any = pretrained(AutoTokenizer, path, trust)
        self.model: Any = pretrained(AutoModel, path, trust).eval().to(torch_device())
        self.dimension: int = self.model.config.hidden_size
        self.max_length = fitting_length(max_length, self.tokenizer, self.model.config)
        self.pooling, self.prefix = pooling, prefix
        self._fits = sys.maxsize  # texts at once, as far as is known
        self._half = half_precision() if half else None
        if pooling != "pooler":
            self.model = fastest(self.model, self.tokenizer, "last_hidden_state", texts)

    def encode(self, texts: list[str], batch_size: int = 64) -> Embeddings:
        """Normalised float32 rows of shape ``(texts, dimension)``, in the order of ``texts``."""
        import torch

        from utils.retrieval.flashrag_parts import pooling

        rows = np.empty((len(texts), self.dimension), dtype=np.float32)

        def work(batch: Sequence[int]) -> None:
            inputs = self.tokenizer(
                [self.prefix + texts[i] for i in batch],
                max_length=self.max_length,
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model(**inputs)
            pooled = pooling(
                getattr(output, "pooler_output", None), output.last_hidden_state, inputs["attention_mask"], self.pooling
            )
            rows[batch] = torch.nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy()

        with torch.inference_mode(), autocast(self._half):
            self._fits = in_batches(length_order(texts), min(batch_size, self._fits), work)
        return rows


class BgeM3Encoder:
    """BGE-M3's dense vectors through FlagEmbedding, which sorts by length itself.

    Args:
        path: folder or hub id.
        max_length: tokens; longer texts are cut.
        half: fp16, on a GPU only.
        texts: about how many will be encoded: many are worth the time of `utils.openvino_model`.
    """

    def __init__(self, path: str, max_length: int, half: bool = True, texts: int = 0) -> None:
        from FlagEmbedding import BGEM3FlagModel

        # One device: over several FlagEmbedding starts a process pool, which needs a main guard in
        # every caller and is left to torchrun-like engines. `device=` would be ignored.
        device = torch_device()
        self.model: Any = BGEM3FlagModel(local_model(path), use_fp16=half and device == "cuda", devices=device)
        self.dimension: int = self.model.model.model.config.hidden_size
        self.max_length = max_length
        wrapper = self.model.model
        quick = fastest(wrapper.model, self.model.tokenizer, "last_hidden_state", texts)
        if quick is not wrapper.model:
            del wrapper.model  # a torch module takes only modules in the place of one
            wrapper.model = quick

    def encode(self, texts: list[str], batch_size: int = 64) -> Embeddings:
        """Normalised float32 rows of shape ``(texts, dimension)``, in the order of ``texts``."""
        found = self.model.encode(texts, batch_size=batch_size, max_length=self.max_length)
        return np.asarray(found["dense_vecs"], dtype=np.float32)


def make_scorer(args: argparse.Namespace, texts: int) -> Encoder:
    """The encoder of rationale scores that the ``scoring`` section names, for about so many texts.

    Raises:
        UsageError: ``scorer`` is neither ``bge-m3`` nor ``encoder``, or the model cannot be had.
    """
    if args.scorer == "bge-m3":
        return BgeM3Encoder(args.model_path, args.scorer_max_length, args.use_fp16, texts)
    if args.scorer == "encoder":
        return TextEncoder(
            args.model_path,
            args.scorer_max_length,
            args.scorer_pooling_method,
            args.use_fp16,
            trust=args.model_path in args.trust_remote_code,
            texts=texts,
        )
    raise UsageError(f"--scorer {args.scorer!r} is neither bge-m3 nor encoder")
