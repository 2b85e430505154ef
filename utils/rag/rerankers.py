"""The cross-encoder that reranks passages.

FlashRAG's CrossReranker cuts the longer text of a pair first, and does not keep the order of equal scores.
FlagEmbedding's FlagReranker gives the same scores as this one, but with transformers 5 it decodes and tokenises each
pair again by itself, computes the first batch of every call twice, and takes any RuntimeError for a lack of memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.devices import (
    autocast,
    fitting_length,
    half_precision,
    in_batches,
    load_classifier,
    local_model,
    torch_device,
)
from utils.method import descending
from utils.openvino_model import with_openvino
from utils.store.rows import Candidates


class LengthSortedReranker:
    """Any model that transformers loads for sequence classification with one label.

    About ``pairs`` will be scored: on a CPU many are worth the conversion to an OpenVINO model.
    """

    def __init__(self, args: argparse.Namespace, pairs: int = 0) -> None:
        path, trust = local_model(args.rerank_model_path), args.rerank_model_path in args.trust_remote_code
        self.device = torch_device()
        self.tokenizer, self.ranker = load_classifier(path, trust)
        self.ranker.to(self.device)
        self.max_length: int = fitting_length(args.rerank_max_length, self.tokenizer, self.ranker.config)
        self._batch_size: int = args.rerank_batch_size  # halved where it does not fit
        self._half = half_precision() if args.use_fp16 else None
        if self._half is None:
            self.ranker = with_openvino(self.ranker, self.tokenizer, "logits", pairs)
        else:
            # The last layer stays in fp32: half precision would round different scores to equal ones.
            _keep_fp32(self.ranker.classifier if hasattr(self.ranker, "classifier") else self.ranker.score)

    def score(self, questions: list[str], passages: list[list[str]]) -> list[list[float]]:
        """Score each question with its passages; the logits come as one list per question."""
        pairs = [(question, text) for question, texts in zip(questions, passages, strict=True) for text in texts]
        # The last digits of a score depend on the batch. A pair that occurs twice gets one score, or its copies
        # would be ordered by rounding and not by the retriever.
        distinct = list(dict.fromkeys(pairs))
        scores = dict(zip(distinct, self._scores(distinct), strict=True))
        return [[scores[question, text] for text in texts] for question, texts in zip(questions, passages, strict=True)]

    def _scores(self, pairs: list[tuple[str, str]]) -> list[float]:
        import torch

        if not pairs:
            return []
        encoded = self._tokenise([question for question, _ in pairs], [passage for _, passage in pairs])
        order = sorted(range(len(pairs)), key=lambda i: -len(encoded["input_ids"][i]))
        scores: NDArray[np.float32] = np.empty(len(pairs), dtype=np.float32)

        def work(batch: Sequence[int]) -> None:
            inputs = {name: [values[i] for i in batch] for name, values in encoded.items()}
            padded = self.tokenizer.pad(inputs, return_tensors="pt").to(self.device)
            scores[batch] = self.ranker(**padded).logits.view(-1).float().cpu().numpy()

        with torch.inference_mode(), autocast(self._half):
            self._batch_size = in_batches(order, self._batch_size, work)
        return scores.tolist()

    def _tokenise(self, questions: list[str], passages: list[str]) -> dict[str, list[list[int]]]:
        """Tokenise pairs as FlagEmbedding's reranker does: the question keeps at most 3/4, then the passage is cut."""
        room = self.max_length * 3 // 4
        cut = self.tokenizer(questions, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        kept = zip(cut, questions, strict=True)
        questions = [self.tokenizer.decode(ids) if len(ids) == room else question for ids, question in kept]
        return dict(self.tokenizer(questions, passages, truncation="only_second", max_length=self.max_length))


def rerank_worker(
    args: argparse.Namespace, pairs: int
) -> Callable[[list[tuple[Candidates, list[str]]]], list[dict[str, Any]]]:
    """Load the reranker and return the function that ranks all candidates of questions, given with their texts."""
    reranker = LengthSortedReranker(args, pairs)

    def work(questions: list[tuple[Candidates, list[str]]]) -> list[dict[str, Any]]:
        scores = reranker.score([row.question for row, _ in questions], [texts for _, texts in questions])
        orders = map(descending, scores)
        return [
            {"passage_ids": [row.passage_ids[i] for i in order], "scores": [found[i] for i in order]}
            for (row, _), found, order in zip(questions, scores, orders, strict=True)
        ]

    return work


def _keep_fp32(head: Any) -> None:
    import torch

    inner = head.forward

    def forward(features: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(features.device.type, enabled=False):
            return inner(features.float(), *args, **kwargs)

    head.forward = forward
