"""Retrieval on FlashRAG's dense retriever, and the file of candidates it leaves."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
from flashrag.retriever.retriever import DenseRetriever
from flashrag.retriever.utils import set_default_instruction

from utils.config import UsageError
from utils.devices import torch_device, usable_cores
from utils.encoder import TextEncoder
from utils.passages import passages_path
from utils.rows import Candidates, Passage, Question
from utils.storage import Journal, Phase, digest, in_chunks, parse_row, resume, write_lines

# FlashRAG sets faiss to one thread when its retriever is imported on a machine without a GPU.
faiss.omp_set_num_threads(usable_cores())

RETRIEVAL_SETTINGS = (
    "retrieval_method",
    "retrieval_query_max_length",
    "retrieval_pooling_method",
    "retrieval_use_fp16",
    "instruction",
)


class FlatRetriever(DenseRetriever):
    """FlashRAG's dense retriever with its traps closed.

    - A Flat index is mapped, not read: wiki18's 65 GB need not fit into memory.
    - Index, corpus and encoder are checked against each other before the first query.
    - Neighbours that do not exist (faiss's -1) are left out instead of becoming the last passage.
    - Half precision only where it is faster; no remote code.

    Args:
        args: the ``retrieval`` section's settings.
        topk: passages a query.
    """

    def __init__(self, args: argparse.Namespace, topk: int) -> None:
        check_query_prefix(args.retrieval_method, args.retriever_path)
        for path, what in ((args.index_path, "index"), (args.corpus_path, "corpus")):
            if not os.path.exists(path):
                raise UsageError(f"{what} {path} is missing; README, 'Reproduce the paper', shows how it is made")
        self._mmap = args.faiss_mmap and not args.faiss_gpu
        super().__init__(
            {
                "retrieval_topk": topk,
                "retrieval_model_path": args.retriever_path,
                "save_retrieval_cache": False,
                "use_retrieval_cache": False,
                "retrieval_cache_path": None,
                "use_reranker": False,
                "use_sentence_transformer": False,
                **vars(args),
            }
        )
        if self.index.ntotal != len(self.corpus):
            raise UsageError(
                f"{args.index_path} holds {self.index.ntotal} vectors but {args.corpus_path} has {len(self.corpus)} "
                "passages: it was built from another corpus; build it again with flashrag.retriever.index_builder"
            )
        if self.index.d != self.encoder.dimension:
            raise UsageError(
                f"{args.index_path} has dimension {self.index.d} but {args.retriever_path} gives "
                f"{self.encoder.dimension}: give the encoder that built the index"
            )

    def load_index(self) -> None:
        """Open the index: mapped if it can be, on the GPUs if asked for."""
        if not self._mmap:
            super().load_index()
            return
        try:
            self.index = faiss.read_index(self.index_path, faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:  # an index type that cannot be mapped
            self.index = faiss.read_index(self.index_path)

    def load_model(self) -> None:
        """Load the query encoder, with the prefix that ``retrieval_method`` stands for."""
        self.encoder = TextEncoder(
            self.retrieval_model_path,
            self.query_max_length,
            self.pooling_method,
            half=self.use_fp16 and torch_device() == "cuda",
            prefix=query_prefix(self.retrieval_method, self.instruction),
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


def check_query_prefix(method: str, path: str) -> None:
    """Refuse an e5 or bge encoder under a name for which FlashRAG would leave out the query prefix."""
    for family in ("e5", "bge"):
        if family in Path(path).name.lower() and family not in method.lower():
            raise UsageError(
                f"--retriever_path {path} looks like {family}, but --retrieval_method {method} gives its queries no "
                f"prefix; use --retrieval_method {family}"
            )


def retrieve(questions: list[Question], args: argparse.Namespace, topk: int, output: Path) -> None:
    """Write the candidates of ``questions`` and the texts of all their passages, once each.

    Resumes after a kill at the last whole chunk of ``retrieval_batch_size`` questions.

    Args:
        questions: rows to retrieve for.
        args: the ``retrieval`` section's settings and ``overwrite``.
        topk: passages a question.
        output: JSON lines of `utils.rows.Candidates`; the texts go to `utils.passages.passages_path`.
    """
    settings = {key: getattr(args, key) for key in RETRIEVAL_SETTINGS} | {
        "topk": topk,
        "questions": digest([(row.id, row.question) for row in questions]),
    }
    phase = Phase(output, [args.index_path, args.corpus_path, args.retriever_path], settings)
    if phase.is_done(args.overwrite) and passages_path(output).exists():
        return
    retriever = FlatRetriever(args, topk)

    def work(chunk: list[Question]) -> list[dict[str, Any]]:
        found = retriever.search_rows([row.question for row in chunk], topk)
        return [{"rows": rows, "scores": scores} for rows, scores in found]

    with Journal(output.with_suffix(".journal.jsonl"), made_with=phase.key) as journal:
        resume(journal, questions, lambda row: row.id, args.retrieval_batch_size, work, "retrieve")
        found = [journal.records[row.id] for row in questions]
        ids = write_passages(retriever, sorted({row for record in found for row in record["rows"]}), output)
        write_lines(
            output,
            (
                Candidates(
                    **question.model_dump(),
                    passage_ids=[ids[row] for row in record["rows"]],
                    scores=record["scores"],
                )
                for question, record in zip(questions, found, strict=True)
            ),
        )
        short = sum(len(record["rows"]) < topk for record in found)
        phase.finish(len(questions), facts={"passages": len(ids), f"questions with fewer than {topk}": short})
        journal.delete()


def write_passages(retriever: FlatRetriever, rows: list[int], output: Path) -> dict[int, str]:
    """Write the passages of the given corpus rows; returns row number -> passage id."""
    ids: dict[int, str] = {}

    def read() -> Any:
        for chunk in in_chunks(rows, 1024):
            for row, passage in zip(chunk, retriever.passages(chunk), strict=True):
                ids[row] = passage.id
                yield passage

    write_lines(passages_path(output), read())
    if len(set(ids.values())) != len(ids):
        raise UsageError(f"{retriever.corpus_path} uses a passage id more than once; ids must be unique")
    return ids
