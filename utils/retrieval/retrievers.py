"""Retrieve through FlashRAG's retrievers: the dense one, over indexes that need not fit into memory, and BM25."""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from pathlib import Path
from typing import Any

import bm25s
import faiss
import numpy as np
import torch

from utils.config import UsageError, without_secrets
from utils.devices import gpus
from utils.ray_engine import start_workers
from utils.retrieval.corpus import Corpus, open_checked, read_corpus
from utils.retrieval.encoder import encoder_family, retriever_encoder
from utils.retrieval.search import BlockIndex, ClusterIndex, stored_type
from utils.store.jsonlines import fault_handler
from utils.store.manifest import UNFINISHED, fingerprint, manifest_path, read_manifest

# On a machine without a GPU, importing FlashRAG's retrievers leaves torch and faiss one thread in the whole process.
threads = torch.get_num_threads(), faiss.omp_get_max_threads()
from flashrag.retriever.retriever import BM25Retriever, DenseRetriever  # noqa: E402
from flashrag.retriever.utils import judge_zh, set_default_instruction  # noqa: E402

torch.set_num_threads(threads[0])
faiss.omp_set_num_threads(threads[1])

__all__ = ["Bm25sRetriever", "FlatRetriever", "bm25_tokenizer", "query_prefix", "set_default_instruction"]
# FlashRAG's settings that stay off.
OFF = (
    "save_retrieval_cache", "use_retrieval_cache", "retrieval_cache_path", "use_reranker", "use_sentence_transformer",
)  # fmt: skip


# What FlashRAG's `search` and `batch_search` call, the same for both retrievers.
def _batch_search(self: Any, query: Any, num: int | None = None, return_score: bool = False) -> Any:
    found = self.search_rows([query] if isinstance(query, str) else query, num or self.topk)
    documents = [[p.model_dump() for p in self.corpus[rows]] for rows, _ in found]
    return (documents, [scores for _, scores in found]) if return_score else documents


def _search(self: Any, query: str, num: int | None = None, return_score: bool = False) -> Any:
    documents, scores = self._batch_search([query], num, True)
    return (documents[0], scores[0]) if return_score else documents[0]


Found = tuple[list[int], list[float]]  # corpus rows and their scores, best first


def open_retriever(args: argparse.Namespace, topk: int, queries: int) -> FlatRetriever | Bm25sRetriever:
    """Return the retriever of ``retrieval_method``."""
    return Bm25sRetriever(args, topk) if args.retrieval_method == "bm25" else FlatRetriever(args, topk, queries)


def open_corpus(args: argparse.Namespace, dropped: Counter[str] | None) -> Corpus:
    """Return the corpus, checked line by line unless the building of the index has done so."""
    path = args.corpus_path
    return open_checked(path) if was_checked(args) else read_corpus(path, fault_handler(dropped))


class Bm25sRetriever(BM25Retriever):
    """FlashRAG's BM25 retriever on bm25s with its traps closed.

    - Queries are stemmed as the passages are. FlashRAG stems passages alone, so that "rivers" finds no "river".
    - Passages of equal score come in corpus order, also at the cut; bm25s keeps any of them. A passage that shares no
      word with the query has score 0, so that a query of unknown words gets the corpus's first passages.
    - The corpus is read by `utils.retrieval.corpus`; an index of another number of passages is refused.
    """

    def __init__(self, args: argparse.Namespace, topk: int) -> None:
        self._args = args
        self.dropped = Counter[str]() if args.skip_bad_rows else None
        config = vars(without_secrets(args)) | dict.fromkeys(OFF, False) | {"retrieval_topk": topk}
        super().__init__(config | {"bm25_backend": "bm25s"}, open_corpus(args, self.dropped))

    def load_model_corpus(self, corpus: Corpus) -> None:
        """Open the index, which stays on the disk, and the tokenizer that made it."""
        folder, self.corpus = self._args.index_path, corpus
        self.tokenizer = bm25_tokenizer(next(iter(corpus)).contents)
        try:
            self.searcher = bm25s.BM25.load(folder, mmap=True)
            self.tokenizer.load_vocab(folder)
            self.tokenizer.load_stopwords(folder)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{folder} is no whole BM25 index ({error}); build it with build_index.py") from None
        if (passages := self.searcher.scores["num_docs"]) != len(corpus):
            raise UsageError(
                f"{folder} holds {passages} passages but {self._args.corpus_path} has {len(corpus)}: it was built from "
                "another corpus; build it again with build_index.py"
            )

    def search_rows(self, queries: list[str], topk: int) -> list[Found]:
        """Return each query's corpus rows and scores, best first; fewer than ``topk`` from a smaller corpus."""
        tokens = self.tokenizer.tokenize(queries, update_vocab=False, show_progress=False)
        return [first_rows(self.searcher.get_scores_from_ids(ids), topk) for ids in tokens]

    _batch_search = _batch_search
    _search = _search


def first_rows(scores: np.ndarray, topk: int) -> Found:
    """Return the rows of the ``topk`` highest scores; of equal scores, also at the cut, the first rows.

    >>> first_rows(np.array([0.5, 2.0, 0.5, 0.5]), 3)
    ([1, 0, 2], [2.0, 0.5, 0.5])
    """
    topk = min(topk, len(scores))
    lowest = np.partition(scores, -topk)[-topk]
    above, level = (scores > lowest).nonzero()[0], (scores == lowest).nonzero()[0]
    rows = np.concatenate([above, level[: topk - len(above)]])
    rows = rows[np.lexsort((rows, -scores[rows]))]
    return rows.tolist(), scores[rows].tolist()


def bm25_tokenizer(first: str) -> Any:
    """Return the tokenizer that FlashRAG's index builder uses for a corpus that begins with this passage."""
    import Stemmer

    if judge_zh(first):
        return bm25s.tokenization.Tokenizer(stopwords="zh")
    return bm25s.tokenization.Tokenizer(stopwords="en", stemmer=Stemmer.Stemmer("english"))


class FlatRetriever(DenseRetriever):
    """FlashRAG's dense retriever with its traps closed; ``queries`` is about how many will be asked.

    - The corpus is read by `utils.retrieval.corpus`; FlashRAG's reader guesses types, and copies all of it.
    - A Flat index is searched block by block, or on a cluster: wiki18's 65 GB need not fit into memory.
    - An index that does not belong to the corpus and the encoder is refused.
    - Neighbours that do not exist (faiss's -1) are left out; FlashRAG returns the last passage in their place.
    - Half precision only on a GPU; remote code only from models in ``trust_remote_code``.
    """

    def __init__(self, args: argparse.Namespace, topk: int, queries: int = 0) -> None:
        self._args, self._queries = args, queries
        config = vars(without_secrets(args)) | dict.fromkeys(OFF, False) | {"retrieval_topk": topk}
        config |= {"retrieval_model_path": args.retriever_path, "retrieval_use_fp16": args.use_fp16}
        self.dropped = Counter[str]() if args.skip_bad_rows else None
        super().__init__(config, open_corpus(args, self.dropped))
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
        """Open a Flat index for the search by blocks, any other by faiss."""
        args = self._args
        if args.engine != "local":
            start = functools.partial(start_workers, args)
            self.index: Any = ClusterIndex(args.index_path, start, args.ray_index_rows, args.faiss_gpu)
            return
        self.index = faiss.read_index(args.index_path, faiss.IO_FLAG_MMAP_IFC)
        if stored_type(self.index) is not None:
            devices = gpus() if args.faiss_gpu else ["cpu"]
            self.index = BlockIndex(args.index_path, devices, keep=not (args.faiss_mmap or args.faiss_gpu))
        elif args.faiss_gpu or not args.faiss_mmap:
            super().load_index()

    def load_model(self) -> None:
        """Load the query encoder, with the prefix that ``retrieval_method`` stands for."""
        args = self._args
        prefix = query_prefix(args.retrieval_method, args.instruction)
        self.encoder = retriever_encoder(args, args.retrieval_query_max_length, prefix, self._queries)

    def search_rows(self, queries: list[str], topk: int) -> list[Found]:
        """Return each query's corpus rows and scores, best first; fewer than ``topk`` from a small corpus."""
        scores, rows = self.index.search(self.encoder.encode(queries, self.batch_size), topk)
        return [(r[r >= 0].tolist(), s[r >= 0].tolist()) for r, s in zip(rows, scores, strict=True)]

    _batch_search = _batch_search
    _search = _search


def was_checked(args: argparse.Namespace) -> bool:
    """Return whether the index was built here from this corpus, which checked all lines, and left none out."""
    manifest = manifest_path(Path(args.index_path))
    if not manifest.exists() or UNFINISHED in (made := read_manifest(manifest)):
        return False
    return not made["dropped"] and fingerprint(args.corpus_path) in made["inputs"].values()


def query_prefix(method: str, instruction: str | None) -> str:
    """Return the text before every query: the instruction if given, else FlashRAG's for the method's name."""
    if instruction is not None:
        return f"{instruction.strip()} ".lstrip()
    return "" if encoder_family(method) == "bge-m3" else set_default_instruction(method, is_query=True)
