"""The cross-encoder that reranks passages, in FlashRAG's interface.

FlagEmbedding's FlagReranker gives the same scores, but with transformers 5 it decodes and tokenises each pair
again by itself, computes the first batch of every call twice, and takes any RuntimeError for a lack of memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.devices import autocast, fitting_length, half_precision, in_batches, local_model, pretrained, torch_device
from utils.method import descending
from utils.openvino_model import with_openvino
from utils.retrieval.retrievers import BaseReranker
from utils.store.rows import Candidates


class LengthSortedReranker(BaseReranker):
    """Any model that transformers loads for sequence classification with one label.

    About ``pairs`` will be scored: on a CPU many are worth the conversion to an OpenVINO model.
    """

    def __init__(self, args: argparse.Namespace, pairs: int = 0) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        super().__init__(vars(args) | {"device": torch_device()})
        path, trust = local_model(self.reranker_model_path), args.rerank_model_path in args.trust_remote_code
        self.tokenizer: Any = pretrained(AutoTokenizer, path, trust)
        self.ranker: Any = pretrained(AutoModelForSequenceClassification, path, trust, num_labels=1)
        self.ranker.eval().to(self.device)
        self.max_length: int = fitting_length(args.rerank_max_length, self.tokenizer, self.ranker.config)
        self._fits = sys.maxsize  # the largest batch, as far as is known
        self._half = half_precision() if args.use_fp16 else None
        if self._half is None:
            self.ranker = with_openvino(self.ranker, self.tokenizer, "logits", pairs)
        else:
            # The last layer stays in fp32: half precision would round different scores to equal ones.
            _keep_fp32(self.ranker.classifier if hasattr(self.ranker, "classifier") else self.ranker.score)

    def get_rerank_scores(self, query_list: list[str], doc_list: list[list[str]], batch_size: int) -> list[float]:
        """Score each question with its passages; the logits come as one flat list, question by question."""
        pairs = [(query, text) for query, texts in zip(query_list, doc_list, strict=True) for text in texts]
        # The last digits of a score depend on the batch. A pair that occurs twice gets one score, or its copies
        # would be ordered by rounding and not by the retriever.
        distinct = list(dict.fromkeys(pairs))
        scores = dict(zip(distinct, self._scores(distinct, batch_size), strict=True))
        return [scores[pair] for pair in pairs]

    def _scores(self, pairs: list[tuple[str, str]], batch_size: int) -> list[float]:
        import torch

        if not pairs:
            return []
        encoded = self._tokenise([query for query, _ in pairs], [passage for _, passage in pairs])
        order = sorted(range(len(pairs)), key=lambda i: -len(encoded["input_ids"][i]))
        scores: NDArray[np.float32] = np.empty(len(pairs), dtype=np.float32)

        def work(batch: Sequence[int]) -> None:
            inputs = {name: [values[i] for i in batch] for name, values in encoded.items()}
            padded = self.tokenizer.pad(inputs, return_tensors="pt").to(self.device)
            scores[batch] = self.ranker(**padded).logits.view(-1).float().cpu().numpy()

        with torch.inference_mode(), autocast(self._half):
            self._fits = in_batches(order, min(batch_size, self._fits), work)
        return scores.tolist()

    def _tokenise(self, queries: list[str], passages: list[str]) -> dict[str, list[list[int]]]:
        """Tokenise pairs as FlagEmbedding trains them: the question keeps at most 3/4, then the passage is cut."""
        room = self.max_length * 3 // 4
        cut = self.tokenizer(queries, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        kept = zip(cut, queries, strict=True)
        queries = [self.tokenizer.decode(ids) if len(ids) == room else query for ids, query in kept]
        return dict(self.tokenizer(queries, passages, truncation="only_second", max_length=self.max_length))

    def score(
        self, questions: list[str], passages: list[list[str]], batch_size: int | None = None
    ) -> list[list[float]]:
        """Score each question with its passages; one list per question."""
        flat = iter(self.get_rerank_scores(questions, passages, batch_size or self.batch_size))
        return [[next(flat) for _ in texts] for texts in passages]

    def rerank(
        self, query_list: list[str], doc_list: list[list[Any]], batch_size: int | None = None, topk: int | None = None
    ) -> tuple[list[list[Any]], list[list[float]]]:
        """Sort each question's passages, texts or ``{"contents": text}``, by score; equal scores keep their order."""
        texts = [[doc if isinstance(doc, str) else doc["contents"] for doc in docs] for docs in doc_list]
        ranked, scores = [], []
        for docs, found in zip(doc_list, self.score(query_list, texts, batch_size), strict=True):
            order = descending(found)[: topk or self.topk]
            ranked.append([docs[i] for i in order])
            scores.append([found[i] for i in order])
        return ranked, scores


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
