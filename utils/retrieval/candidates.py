"""Retrieval of candidates: the file of candidates and the file of their texts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import UsageError
from utils.ray_engine import Here, make_engine, one_by_one
from utils.store.journal import Journal, in_chunks, resume
from utils.store.jsonlines import write_lines
from utils.store.lookup import passages_path
from utils.store.manifest import UNFINISHED, Phase, digest, fingerprint, manifest_path, read_manifest
from utils.store.rows import Candidates, Question

if TYPE_CHECKING:
    from utils.retrieval.retrievers import FlatRetriever

LARGE_INDEX = 8 << 30  # bytes
QUESTIONS_A_PASS = 4096  # as many as faiss compares with one reading of the vectors
RETRIEVAL_SETTINGS = (
    "retrieval_method",
    "retrieval_query_max_length",
    "retrieval_pooling_method",
    "use_fp16",
    "instruction",
)


def retrieve(
    questions: list[Question],
    args: argparse.Namespace,
    topk: int,
    output: Path,
    dropped: Mapping[str, int] | None = None,
) -> None:
    """Write the candidates of ``questions`` and the texts of all their passages, once each.

    Resumes after a kill at the last whole chunk of `questions_a_pass`.

    Args:
        questions: rows to retrieve for.
        args: the ``retrieval`` section's settings and ``overwrite``.
        topk: passages a question.
        output: JSON lines of `utils.store.rows.Candidates`; the texts go to `utils.store.lookup.passages_path`.
        dropped: rows of the questions' file that were left out, for the manifest.
    """
    settings = {key: getattr(args, key) for key in RETRIEVAL_SETTINGS} | {
        "topk": topk,
        "questions": digest([(row.id, row.question) for row in questions]),
    }
    check_retrieval_inputs(args)
    journal_path = output.with_suffix(".journal.jsonl")
    inputs = [args.index_path, args.corpus_path, args.retriever_path]
    phase = Phase(output, inputs, settings, scratch=[journal_path])
    if phase.is_done(args.overwrite) and passages_path(output).exists():
        return
    retriever = open_retriever(args, topk, len(questions))

    def work(chunk: list[Question]) -> list[dict[str, Any]]:
        found = retriever.search_rows([row.question for row in chunk], topk)
        return [{"rows": rows, "scores": scores} for rows, scores in found]

    with Journal(journal_path, made_with=phase.key) as journal:
        resume(journal, questions, lambda row: row.id, questions_a_pass(args), one_by_one(work), "retrieve")
        rows = {row for question in questions for row in journal[question.id]["rows"]}
        ids = write_passages(retriever, sorted(rows), output)
        write_lines(output, (_candidates(question, journal[question.id], ids) for question in questions))
        short = sum(len(journal[question.id]["rows"]) < topk for question in questions)
        phase.finish(
            len(questions),
            dropped,
            beside=[passages_path(output)],
            facts={"passages": len(ids), f"questions with fewer than {topk}": short},
        )
        journal.delete()


def open_retriever(args: argparse.Namespace, topk: int, queries: int) -> FlatRetriever:
    """The retriever, whose index the engine's workers search; the encoder and the corpus are here in any case."""
    from utils.retrieval.retrievers import FlatRetriever

    engine = make_engine(args)
    if isinstance(engine, Here):
        return FlatRetriever(args, topk, queries)
    from utils.retrieval.cluster_search import ClusterIndex

    settings = vars(args) | {"faiss_gpu": False, "faiss_mmap": True}  # this process opens the index, no more
    retriever = FlatRetriever(argparse.Namespace(**settings), topk, queries)
    retriever.index = ClusterIndex(args.index_path, engine, args.ray_index_rows, args.faiss_gpu)
    return retriever


def questions_a_pass(args: argparse.Namespace) -> int:
    """How many questions are searched, and then kept, together.

    ``retrieval_batch_size``; many more of a large index, which each search may have to read from the disk, and
    on a cluster, where each search starts workers.
    """
    large = os.path.getsize(args.index_path) >= LARGE_INDEX or args.engine != "local"
    return max(args.retrieval_batch_size, QUESTIONS_A_PASS if large else 0)


def _candidates(question: Question, record: dict[str, Any], ids: Mapping[int, str]) -> Candidates:
    passage_ids = [ids[row] for row in record["rows"]]
    return Candidates(**question.model_dump(), passage_ids=passage_ids, scores=record["scores"])


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


def check_retrieval_inputs(args: argparse.Namespace) -> None:
    """Refuse missing files, folders in their place, and an e5 or bge encoder whose queries would get no prefix."""
    for path, what in ((args.index_path, "index"), (args.corpus_path, "corpus")):
        if not os.path.isfile(path):
            fault = "is a folder, not a file" if os.path.isdir(path) else "is missing"
            raise UsageError(f"{what} {path} {fault}; README, 'Reproduce the paper', shows how it is made")
    check_index_origin(args)
    for family in ("e5", "bge"):
        if family in Path(args.retriever_path).name.lower() and family not in args.retrieval_method.lower():
            raise UsageError(
                f"--retriever_path {args.retriever_path} looks like {family}, but --retrieval_method "
                f"{args.retrieval_method} gives its queries no prefix; use --retrieval_method {family}"
            )


def check_index_origin(args: argparse.Namespace) -> None:
    """Refuse an index that its manifest says was made of another corpus, with another encoder, or in another way."""
    path = manifest_path(Path(args.index_path))
    if not path.exists():
        return
    made = read_manifest(path)
    if UNFINISHED in made:
        return  # told by the phase that reads it
    inputs = {"--retriever_path": args.retriever_path, "--corpus_path": args.corpus_path}
    for flag, value in inputs.items():
        if fingerprint(value) not in made["inputs"].values():
            raise UsageError(f"{args.index_path} was not made with {flag} {value}, but by: {made['command']}")
    for key in ("retrieval_method", "retrieval_pooling_method"):
        if made["settings"].get(key, getattr(args, key)) != getattr(args, key):
            raise UsageError(
                f"{args.index_path} was made with --{key} {made['settings'][key]}, not {getattr(args, key)}"
            )
