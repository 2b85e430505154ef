"""The reranker of the RAG runs: FlashRAG's contract, sorted by length, with a stable order."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.devices import autocast, fitting_length, half_precision, in_batches, local_model, pretrained, torch_device
from utils.method import descending
from utils.openvino_model import fastest
from utils.retrieval.flashrag_parts import BaseReranker
from utils.store.rows import Candidates


class LengthSortedReranker(BaseReranker):
    """Any cross-encoder that transformers loads for sequence classification with one label.

    Pairs are tokenised as FlagEmbedding trains them: only the passage is cut, the question keeps at
    most three quarters of the pair. In half precision the scoring layer stays in fp32, so
    that scores that differ make no ties.

    Args:
        args: the ``rag`` section's ``rerank_*`` settings.
        pairs: about how many will be scored: on a CPU many are worth the time of `utils.openvino_model`.
    """

    def __init__(self, args: argparse.Namespace, pairs: int = 0) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        super().__init__(vars(args) | {"device": torch_device()})
        path, trust = local_model(self.reranker_model_path), args.rerank_model_path in args.trust_remote_code
        self.tokenizer: Any = pretrained(AutoTokenizer, path, trust)
        self.ranker: Any = pretrained(AutoModelForSequenceClassification, path, trust, num_labels=1)
        self.ranker.eval().to(self.device)
        self.max_length: int = fitting_length(args.rerank_max_length, self.tokenizer, self.ranker.config)
        self._fits = sys.maxsize  # pairs at once, as far as is known
        self._half = half_precision() if args.use_fp16 else None
        if self._half is None:
            self.ranker = fastest(self.ranker, self.tokenizer, "logits", pairs)
        else:
            _keep_fp32(self.ranker.classifier if hasattr(self.ranker, "classifier") else self.ranker.score)

    def get_rerank_scores(self, query_list: list[str], doc_list: list[list[str]], batch_size: int) -> list[float]:
        """Logits of all pairs, question by question.

        Args:
            query_list: the questions.
            doc_list: for each question its passages.
            batch_size: pairs a forward pass.

        Returns:
            One flat list: the first question's passages in order, then the second's, ...
        """
        import torch

        pairs = [(query, passage) for query, docs in zip(query_list, doc_list, strict=True) for passage in docs]
        scores: NDArray[np.float32] = np.empty(len(pairs), dtype=np.float32)
        if not pairs:
            return []
        encoded = self._tokenise([query for query, _ in pairs], [passage for _, passage in pairs])
        order = sorted(range(len(pairs)), key=lambda i: -len(encoded["input_ids"][i]))

        def work(batch: Sequence[int]) -> None:
            inputs = self.tokenizer.pad(
                {name: [values[i] for i in batch] for name, values in encoded.items()}, return_tensors="pt"
            ).to(self.device)
            scores[batch] = self.ranker(**inputs).logits.view(-1).float().cpu().numpy()

        with torch.inference_mode(), autocast(self._half):
            self._fits = in_batches(order, min(batch_size, self._fits), work)
        return scores.tolist()

    def rerank(
        self,
        query_list: list[str],
        doc_list: list[list[Any]],
        batch_size: int | None = None,
        topk: int | None = None,
    ) -> tuple[list[list[Any]], list[list[float]]]:
        """Sort each question's passages by score; equal scores keep the retriever's order.

        Args:
            query_list: the questions.
            doc_list: for each question its passages, as texts or as ``{"contents": text}``.
            batch_size: pairs a forward pass; ``rerank_batch_size`` if None.
            topk: passages kept; ``rerank_topk`` if None.

        Returns:
            Passages and scores, best first.
        """
        texts = [[doc if isinstance(doc, str) else doc["contents"] for doc in docs] for docs in doc_list]
        flat = iter(self.get_rerank_scores(query_list, texts, batch_size or self.batch_size))
        ranked, scores = [], []
        for docs in doc_list:
            found = [next(flat) for _ in docs]
            order = descending(found)[: topk or self.topk]
            ranked.append([docs[i] for i in order])
            scores.append([found[i] for i in order])
        return ranked, scores

    def _tokenise(self, queries: list[str], passages: list[str]) -> dict[str, list[list[int]]]:
        room = self.max_length * 3 // 4
        cut = self.tokenizer(queries, add_special_tokens=False, truncation=True, max_length=room)
        if any(len(ids) == room for ids in cut["input_ids"]):
            queries = [
                self.tokenizer.decode(ids) if len(ids) == room else query
                for ids, query in zip(cut["input_ids"], queries, strict=True)
            ]
        return dict(self.tokenizer(queries, passages, truncation="only_second", max_length=self.max_length))


def _keep_fp32(head: Any) -> None:
    import torch

    inner = head.forward

    def forward(features: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(features.device.type, enabled=False):
            return inner(features.float(), *args, **kwargs)

    head.forward = forward


class RerankWork:
    """A worker that ranks all passages of questions.

    Args:
        args: as of `LengthSortedReranker`.
        pairs: about how many will be scored.
    """

    def __init__(self, args: argparse.Namespace, pairs: int) -> None:
        self._reranker = LengthSortedReranker(args, pairs)

    def __call__(self, questions: list[tuple[Candidates, list[str]]]) -> list[dict[str, Any]]:
        """``{passage_ids, scores}``, best first, for each question with the texts of its passages."""
        docs = [
            [{"id": pid, "contents": text} for pid, text in zip(row.passage_ids, texts, strict=True)]
            for row, texts in questions
        ]
        most = max((len(texts) for texts in docs), default=0)
        ranked, scores = self._reranker.rerank([row.question for row, _ in questions], docs, topk=most)
        return [
            {"passage_ids": [doc["id"] for doc in found], "scores": score}
            for found, score in zip(ranked, scores, strict=True)
        ]
