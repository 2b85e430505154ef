"""Both scores of every candidate (RADIO, step 2), each in a score cache: a line per question, best passage first."""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from utils.config import UsageError, settings_of, without_secrets
from utils.method import descending, scored_text, similarity
from utils.ray_engine import MapParts, start_workers
from utils.retrieval.encoder import Embeddings, encode_files, length_order, make_scorer, pooling_method, prepare_folder
from utils.store.files import locked, reserve
from utils.store.journal import in_chunks
from utils.store.jsonlines import PassageTexts, passages_path, read_rows, write_lines
from utils.store.manifest import Phase
from utils.store.rows import Candidates, Rationale, Scored

BATCHES_PER_FILE = 64
GET_DOCS = "python dataset_generation.py --dataset NAME --phase get_docs"


def retrieval_scores(docs: Path, output: Path, overwrite: bool) -> None:
    """Write the retriever's own scores of the candidates as a score cache."""
    phase = Phase(output, [docs], {})
    if not phase.is_done(overwrite):
        candidates = read_rows(docs, Candidates, GET_DOCS)
        phase.finish(write_lines(output, (best_first(row, row.scores) for row in candidates)))


def score_rationales(docs: Path, rationales: Path | None, output: Path, args: argparse.Namespace) -> None:
    """Write the rationale score of every candidate as a score cache.

    Every distinct passage and every rationale is encoded once. Questions of ``docs``, the candidates file, that have
    no rationale are left out and counted; a rationale without candidates is an error. Without ``rationales``, question
    and gold answer alone are scored.
    """
    settings = settings_of(args, "scorer", "scorer_max_length", "use_fp16")
    pooling = args.scorer_pooling_method or "mean"  # BGE-M3 has its own
    if args.scorer == "encoder":
        pooling = pooling_method(args.model_path, args.scorer_pooling_method, "scorer_pooling_method")
    settings["scorer_pooling_method"] = pooling
    scratch = output.parent / "embeddings"
    inputs = filter(None, [docs, passages_path(docs), rationales, args.model_path])
    phase = Phase(output, inputs, settings, scratch=[scratch])
    if phase.is_done(args.overwrite):
        return
    everyone = candidates = read_rows(docs, Candidates, GET_DOCS)
    if rationales is None:
        queries = [scored_text(row.question, row.golden_answers, None) for row in candidates]
    else:
        rationale_of = _by_question(rationales, docs, everyone)
        candidates = [row for row in everyone if row.id in rationale_of]
        known = [rationale_of[row.id] for row in candidates]
        queries = [scored_text(row.question, row.golden_answers, row.reason) for row in known]
    store = PassageTexts(passages_path(docs))
    # Passages of equal text share a row: encoded in two batches, they would differ in the last digits.
    row_of_text: dict[str, int] = {}
    used = dict.fromkeys(pid for row in candidates for pid in row.passage_ids)
    row_of = {pid: row_of_text.setdefault(store[pid], len(row_of_text)) for pid in used}
    with locked(scratch):
        texts = len(row_of_text) + len(queries)
        run = start_workers(args, functools.partial(encode_worker, without_secrets(args), texts))
        chunk = args.scorer_batch_size * BATCHES_PER_FILE
        encode = functools.partial(_encode, run=run, chunk_size=chunk, made_with=f"{phase.key} {chunk}")
        passages = encode(list(row_of_text), folder=scratch / "passages")
        query_rows = encode(queries, folder=scratch / "rationales")

        def lines() -> Iterator[Scored]:
            for query, row in zip(query_rows, candidates, strict=True):
                # Each row once, because a product's last digits depend on its place among the others.
                rows = list(dict.fromkeys(row_of[pid] for pid in row.passage_ids))
                score_of = dict(zip(rows, similarity(query, passages[rows]).tolist(), strict=True))
                yield best_first(row, [score_of[row_of[pid]] for pid in row.passage_ids])

        dropped = {"questions without a rationale": len(everyone) - len(candidates)}
        phase.finish(write_lines(output, lines()), dropped, facts={"passages encoded": len(row_of_text)})
        shutil.rmtree(scratch)


def best_first(row: Candidates, scores: list[float]) -> Scored:
    """Return a cache line: the row's passages sorted by score, equal scores in retrieval order."""
    order = descending(scores)
    passage_ids = [row.passage_ids[i] for i in order]
    return Scored(id=row.id, query=row.question, passage_ids=passage_ids, scores=[scores[i] for i in order])


def _by_question(rationales: Path, docs: Path, candidates: list[Candidates]) -> dict[str, Rationale]:
    """Return the rationales by question id; each must belong to one of ``docs``'s questions."""
    found = {row.id: row for row in read_rows(rationales, Rationale, "python llm_generation.py --dataset NAME")}
    questions = {row.id: row.question for row in candidates}
    for row in found.values():
        if questions.get(row.id) != row.question:
            raise UsageError(
                f"{rationales}: question {row.id!r} ({row.question[:60]!r}) has no candidates in {docs}, or another "
                "text there; both files must come from the same train.jsonl and --train_questions"
            )
    return found


def encode_worker(args: argparse.Namespace, texts: int) -> Callable[[list[str]], Embeddings]:
    """Load the scorer, for about ``texts`` texts over all workers, and return the function that encodes some."""
    encoder = make_scorer(args, texts)
    return lambda part: encoder.encode(part, args.scorer_batch_size)


def _encode(texts: list[str], folder: Path, run: MapParts, chunk_size: int, made_with: str) -> Embeddings:
    """Encode texts, longest first, into files of ``chunk_size`` texts; return their rows, mapped from the disk.

    Files that an earlier call with the same inputs and settings (``made_with``) left are kept.
    """
    prepare_folder(folder, f"{made_with} {len(texts)}")
    chunks = list(in_chunks(length_order(texts), chunk_size))
    files = {folder / f"{number:05d}.npy": [[texts[i] for i in chunk]] for number, chunk in enumerate(chunks)}
    encode_files(files, run, f"encode {folder.name}", "text")
    parts = [np.load(path, mmap_mode="r") for path in files]
    output, shape = folder.with_suffix(".npy"), (len(texts), parts[0].shape[1])
    rows = np.lib.format.open_memmap(output, mode="w+", dtype=np.float32, shape=shape)
    reserve(output)  # writing through a map to a full disk would end the process with SIGBUS
    for chunk, part in zip(chunks, parts, strict=True):
        rows[chunk] = part
    return rows
