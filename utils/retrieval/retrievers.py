"""FlashRAG's dense retriever with its traps closed."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

import faiss

from utils.config import SECRETS, UsageError
from utils.devices import gpus
from utils.retrieval.encoder import TextEncoder
from utils.retrieval.flashrag_parts import DenseRetriever, set_default_instruction
from utils.retrieval.search import BlockIndex, stored_type
from utils.store.jsonlines import parse_row
from utils.store.rows import Passage


class FlatRetriever(DenseRetriever):
    """FlashRAG's dense retriever with its traps closed.

    - A Flat index is searched block by block: wiki18's 65 GB need not fit into memory, nor into a GPU's.
    - Index, corpus and encoder are checked against each other before the first query.
    - Neighbours that do not exist (faiss's -1) are left out instead of becoming the last passage.
    - Half precision only where it is faster; no remote code.

    Args:
        args: the ``retrieval`` section's settings.
        topk: passages a query.
        queries: about how many will be asked.
    """

    def __init__(self, args: argparse.Namespace, topk: int, queries: int = 0) -> None:
        self._queries = queries
        self._mmap = args.faiss_mmap
        self._trust = args.retriever_path in args.trust_remote_code
        super().__init__(
            {
                "retrieval_topk": topk,
                "retrieval_model_path": args.retriever_path,
                "save_retrieval_cache": False,
                "use_retrieval_cache": False,
                "retrieval_cache_path": None,
                "use_reranker": False,
                "use_sentence_transformer": False,
                "retrieval_use_fp16": args.use_fp16,
                **{key: value for key, value in vars(args).items() if key not in SECRETS},
            }
        )
        if self.index.ntotal != len(self.corpus):
            raise UsageError(
                f"{args.index_path} holds {self.index.ntotal} vectors but {args.corpus_path} has {len(self.corpus)} "
                "passages: it was built from another corpus; build it again with build_index.py"
            )
        if self.index.d != self.encoder.dimension:
            raise UsageError(
                f"{args.index_path} has dimension {self.index.d} but {args.retriever_path} gives "
                f"{self.encoder.dimension}: give the encoder that built the index"
            )

    def load_index(self) -> None:
        """Open a Flat index for the search by blocks, one of another kind by faiss, mapped if it can be."""
        self.index: Any = None
        with contextlib.suppress(RuntimeError):  # of an index that cannot be mapped
            self.index = faiss.read_index(self.index_path, faiss.IO_FLAG_MMAP_IFC)
        if self.index is not None and stored_type(self.index) is not None:
            devices = gpus() if self.use_faiss_gpu else ["cpu"]
            self.index = BlockIndex(self.index_path, devices, keep=not (self._mmap or self.use_faiss_gpu))
        elif self.index is None or not self._mmap or self.use_faiss_gpu:
            super().load_index()

    def load_model(self) -> None:
        """Load the query encoder, with the prefix that ``retrieval_method`` stands for."""
        self.encoder = TextEncoder(
            self.retrieval_model_path,
            self.query_max_length,
            self.pooling_method,
            half=self.use_fp16,
            prefix=query_prefix(self.retrieval_method, self.instruction),
            trust=self._trust,
            texts=self._queries,
        )

    def search_rows(self, queries: list[str], topk: int) -> list[tuple[list[int], list[float]]]:
        """Corpus row numbers and scores a query, best first; fewer than ``topk`` if the corpus is smaller."""
        scores, rows = self.index.search(self.encoder.encode(queries, self.batch_size), topk)
        return [
            (found[found >= 0].tolist(), score[found >= 0].tolist()) for found, score in zip(rows, scores, strict=True)
        ]

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """The corpus rows, read in one pass."""
        columns = self.corpus[list(rows)]
        return [
            parse_row({"id": pid, "contents": text}, Passage, f"{self.corpus_path}, row {row}")
            for row, pid, text in zip(rows, columns["id"], columns["contents"], strict=True)
        ]

    def _batch_search(self, query: Any, num: int | None = None, return_score: bool = False) -> Any:
        found = self.search_rows([query] if isinstance(query, str) else query, num or self.topk)
        documents = [[p.model_dump() for p in self.passages(rows)] for rows, _ in found]
        return (documents, [scores for _, scores in found]) if return_score else documents

    def _search(self, query: str, num: int | None = None, return_score: bool = False) -> Any:
        documents, scores = self._batch_search([query], num, True)
        return (documents[0], scores[0]) if return_score else documents[0]


def query_prefix(method: str, instruction: str | None) -> str:
    """The text before every query: the instruction if given, else FlashRAG's for the method's name."""
    return f"{instruction.strip()} " if instruction else set_default_instruction(method, is_query=True)
