"""Retrieve candidates: a file of passage ids per question, and a file of the passages' texts."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.config import UsageError, settings_of
from utils.ray_engine import one_by_one
from utils.retrieval.corpus import Corpus
from utils.retrieval.encoder import encoder_family, pooling_method
from utils.store.files import require_file
from utils.store.journal import Journal, resume
from utils.store.jsonlines import passages_path, write_lines
from utils.store.manifest import UNFINISHED, Phase, digest, fingerprint, manifest_path, read_manifest
from utils.store.rows import Candidates, Passage, Question

BM25_PARAMETERS = "params.index.json"  # a file that every folder of bm25s has
LARGE_INDEX = 8 << 30  # bytes
LARGE_INDEX_QUESTIONS = 4096  # searched with one reading of the file


def retrieval_inputs(args: argparse.Namespace) -> list[str]:
    """Return the files and the model that candidates depend on."""
    encoder = [] if args.retrieval_method == "bm25" else [args.retriever_path]
    return [args.index_path, args.corpus_path, *encoder]


def retrieval_settings(args: argparse.Namespace, setting: str | None = None) -> dict[str, Any]:
    """Return what candidates depend on, beside their input files; ``setting`` as in `pooling_method`."""
    if args.retrieval_method == "bm25":
        return {"retrieval_method": "bm25"}
    settings = settings_of(args, "retrieval_method", "retrieval_query_max_length", "use_fp16", "instruction")
    pooling = pooling_method(args.retriever_path, args.retrieval_pooling_method, setting)
    return settings | {"retrieval_pooling_method": pooling}


def retrieve(
    questions: list[Question],
    args: argparse.Namespace,
    topk: int,
    output: Path,
    dropped: Mapping[str, int] | None = None,
) -> None:
    """Write each question's `Candidates` to ``output``, and the texts of their passages, once each, to `passages_path`.

    ``dropped`` counts the rows of the questions' file that were left out, for the manifest.
    """
    check_retrieval_inputs(args)
    asked = digest([(row.id, row.question) for row in questions])
    settings = retrieval_settings(args, "retrieval_pooling_method") | {"topk": topk, "questions": asked}
    journal_path = output.with_suffix(".journal.jsonl")
    phase = Phase(output, retrieval_inputs(args), settings, scratch=[journal_path])
    if phase.is_done(args.overwrite) and passages_path(output).exists():
        return
    from utils.retrieval.retrievers import open_retriever  # takes seconds, for which a finished phase need not wait

    retriever = open_retriever(args, topk, len(questions))

    def work(chunk: list[Question]) -> list[dict[str, Any]]:
        found = retriever.search_rows([row.question for row in chunk], topk)
        return [{"rows": rows, "scores": scores} for rows, scores in found]

    # A large index may have to be read from the disk for each search, and on a cluster each search starts workers.
    large = os.path.getsize(args.index_path) >= LARGE_INDEX or args.engine != "local"
    at_once = max(args.retrieval_batch_size, LARGE_INDEX_QUESTIONS if large else 0)
    with Journal(journal_path, made_with=phase.key) as journal:
        resume(journal, questions, lambda row: row.id, at_once, one_by_one(work), "retrieve")
        rows = sorted({row for question in questions for row in journal[question.id]["rows"]})
        ids, hashes = write_passages(retriever.corpus, rows, output)
        write_lines(output, (_candidates(row, **journal[row.id], ids=ids, hashes=hashes) for row in questions))
        left_out = sum((retriever.dropped or {}).values())
        short = sum(len(journal[question.id]["rows"]) < topk for question in questions)
        facts = {"passages": len(ids), f"questions with fewer than {topk}": short, "left out of the corpus": left_out}
        if args.retrieval_method == "bm25":
            unknown = sum(not any(journal[question.id]["scores"]) for question in questions)
            facts["questions without a word of the corpus"] = unknown
            if unknown:
                print(f"{unknown} questions share no word with the corpus: they got its first passages")
        phase.finish(len(questions), dropped, beside=[passages_path(output)], facts=facts)
        journal.delete()


def write_passages(corpus: Corpus, rows: list[int], output: Path) -> tuple[dict[int, str], dict[int, bytes]]:
    """Write the passages of corpus rows; return the passage id and a hash of the text by row."""
    ids: dict[int, str] = {}
    hashes: dict[int, bytes] = {}  # the texts of a million passages would take a gigabyte

    def read() -> Iterator[Passage]:
        for row, passage in zip(rows, corpus[rows], strict=True):
            ids[row] = passage.id
            hashes[row] = hashlib.blake2b(passage.contents.encode(), digest_size=16).digest()
            yield passage

    write_lines(passages_path(output), read())
    if len(set(ids.values())) != len(ids):  # an index of an earlier version was built without a look at the ids
        raise UsageError(f"{corpus.path} uses a passage id more than once; ids must be unique")
    return ids, hashes


def _candidates(
    question: Question, rows: list[int], scores: list[float], ids: Mapping[int, str], hashes: Mapping[int, bytes]
) -> Candidates:
    """Return the candidates of a question; passages of equal text share their best score, in corpus order.

    Encoded in different batches, their scores can differ in the last digits, which must not decide their order.
    """
    best: dict[bytes, int] = {}  # rank of the first passage with a text
    for rank, row in enumerate(rows):
        best.setdefault(hashes[row], rank)
    ranked = sorted(rows, key=lambda row: (best[hashes[row]], row))
    shared = [scores[best[hashes[row]]] for row in ranked]
    return Candidates(**question.model_dump(), passage_ids=[ids[row] for row in ranked], scores=shared)


def check_retrieval_inputs(args: argparse.Namespace) -> None:
    """Refuse missing files, a prefix that is not the encoder's, and an index made with other settings."""
    shown = "README, 'Reproduce the paper', shows how it is made"
    require_file(args.corpus_path, "corpus", shown)
    sparse = args.retrieval_method == "bm25"
    if not sparse:
        require_file(args.index_path, "index", shown)
    elif not Path(args.index_path, BM25_PARAMETERS).exists():
        raise UsageError(f"index {args.index_path} is missing, or no folder of bm25s; build_index.py makes it")
    elif args.engine != "local":
        raise UsageError(f"--engine {args.engine}: BM25 is searched on one machine; give --engine local")
    family = None if sparse else encoder_family(Path(args.retriever_path).name)
    given = args.instruction is not None and family != "e5"  # whose passages have a prefix too
    if family and family != encoder_family(args.retrieval_method) and not given:
        raise UsageError(
            f"--retriever_path {args.retriever_path} looks like {family}, but --retrieval_method "
            f"{args.retrieval_method} gives its queries another prefix, or none; use --retrieval_method {family}"
        )
    manifest = manifest_path(Path(args.index_path))
    # An index from elsewhere has no manifest. `Phase` refuses an unfinished index.
    if not manifest.exists() or UNFINISHED in (made := read_manifest(manifest)):
        return
    for flag in ("corpus_path",) if sparse else ("retriever_path", "corpus_path"):
        if fingerprint(value := getattr(args, flag)) not in made["inputs"].values():
            raise UsageError(f"{args.index_path} was not made with --{flag} {value}, but by: {made['command']}")
    settings = retrieval_settings(args)
    for flag in settings.keys() & {"retrieval_method", "retrieval_pooling_method"}:
        value = settings[flag]
        if (found := made["settings"].get(flag, value)) != value:
            raise UsageError(f"{args.index_path} was made with --{flag} {found}, not {value}")
    if made["dropped"] and not args.skip_bad_rows:
        raise UsageError(f"{args.index_path} was made without the corpus's bad rows; give --skip_bad_rows here too")
