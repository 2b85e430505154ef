"""Rationale scores: how similar a passage is to question, answer and rationale (RADIO, step 3)."""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from utils.config import UsageError, without_secrets
from utils.llm.rationales import scored_text
from utils.ray_engine import Run, make_engine
from utils.retrieval.embedding_files import EmbeddingFile, encode_files, prepare_folder
from utils.retrieval.encoder import Embeddings, length_order, make_scorer
from utils.store.files import lock_path, locked, read_rows, reserve, write_lines
from utils.store.journal import in_chunks
from utils.store.manifest import Phase
from utils.store.passages import PassageTexts, passages_path
from utils.store.rows import Candidates, Rationale, Scored
from utils.training.fusion import descending

SCORER_SETTINGS = ("scorer", "scorer_max_length", "scorer_pooling_method", "use_fp16")
ENCODE_AT_ONCE = 64  # batches of a chunk


def score_rationales(docs: Path, rationales: Path, output: Path, args: argparse.Namespace) -> None:
    """Write the rationale score of every candidate passage.

    Every distinct passage and every rationale is encoded once, all sorted by length together;
    a question's scores are then inner products of stored rows. Questions of ``docs`` without a
    rationale are left out and counted; a rationale without candidates is an error.

    Args:
        docs: candidates of the training questions.
        rationales: the same questions with ``reason``, joined by id.
        output: score cache in the own format.
        args: the ``scoring`` section's settings and ``overwrite``.
    """
    settings = {key: getattr(args, key) for key in SCORER_SETTINGS}
    scratch = output.parent / "embeddings"
    phase = Phase(output, [docs, passages_path(docs), rationales, args.model_path], settings, scratch=[scratch])
    if phase.is_done(args.overwrite):
        return
    everyone, reasons = _joined(docs, rationales)
    candidates = [row for row in everyone if row.id in reasons]
    texts = PassageTexts(passages_path(docs))
    used = dict.fromkeys(pid for row in candidates for pid in row.passage_ids)
    with locked(lock_path(scratch)):
        rows = len(used) + len(candidates)
        run = make_engine(args).start(functools.partial(EncodeWork, without_secrets(args), rows))
        chunk = args.scorer_batch_size * ENCODE_AT_ONCE
        encode = functools.partial(_encode, run=run, chunk_size=chunk, made_with=f"{phase.key} {chunk}")
        passages = encode([texts[pid] for pid in used], folder=scratch / "passages")
        queries = encode([scored_text(reasons[row.id]) for row in candidates], folder=scratch / "rationales")
        by_id = {pid: i for i, pid in enumerate(used)}
        count = write_lines(output, _scored(candidates, queries(), passages(), by_id))
        missing = len(everyone) - len(candidates)
        phase.finish(count, {"questions without a rationale": missing}, facts={"passages encoded": len(used)})
        shutil.rmtree(scratch)


def _scored(
    candidates: list[Candidates], queries: Embeddings, passages: Embeddings, row_of: dict[str, int]
) -> Iterator[Scored]:
    for query, row in zip(queries, candidates, strict=True):
        scores = passages[[row_of[pid] for pid in row.passage_ids]] @ query
        yield best_first(row, scores.tolist())


def retrieval_scores(docs: Path, output: Path, overwrite: bool) -> None:
    """Write the retriever's own scores of the same passages as a score cache."""
    phase = Phase(output, [docs], {})
    if phase.is_done(overwrite):
        return
    made_by = "python dataset_generation.py --dataset NAME --phase get_docs"
    candidates = read_rows(docs, Candidates, made_by)
    phase.finish(write_lines(output, (best_first(row, row.scores) for row in candidates)))


def best_first(row: Candidates, scores: list[float]) -> Scored:
    """A cache line of the row's passages sorted by score, equal scores in retrieval order."""
    order = descending(scores)
    return Scored(
        id=row.id,
        query=row.question,
        passage_ids=[row.passage_ids[i] for i in order],
        scores=[scores[i] for i in order],
    )


def _joined(docs: Path, rationales: Path) -> tuple[list[Candidates], dict[str, Rationale]]:
    """All candidates, and the rationales by question id."""
    candidates = read_rows(docs, Candidates, "python dataset_generation.py --dataset NAME --phase get_docs")
    reasons = {r.id: r for r in read_rows(rationales, Rationale, "python llm_generation.py --dataset NAME")}
    questions = {row.id: row.question for row in candidates}
    for reason in reasons.values():
        if questions.get(reason.id) != reason.question:
            raise UsageError(
                f"{rationales}: question {reason.id!r} ({reason.question[:60]!r}) has no candidates in {docs}, or "
                "another text there; both files must come from the same train.jsonl and --train_questions"
            )
    return candidates, reasons


class EncodeWork:
    """A worker that encodes texts.

    Args:
        args: the ``scoring`` section's settings.
        texts: about how many will be encoded, by all workers.
    """

    def __init__(self, args: argparse.Namespace, texts: int) -> None:
        self._encoder, self._batch_size = make_scorer(args, texts), args.scorer_batch_size

    def __call__(self, texts: list[str]) -> Embeddings:
        """Normalised rows in the order of the texts."""
        return self._encoder.encode(texts, self._batch_size)


def _encode(texts: list[str], folder: Path, run: Run, chunk_size: int, made_with: str) -> Callable[[], Embeddings]:
    """Encode into files that a later run with the same inputs goes on with.

    Args:
        texts: any order; encoded longest first.
        folder: of the files.
        run: maps chunks of texts to their rows.
        chunk_size: texts a chunk, each of which is a file.
        made_with: identifies inputs and settings; files of others are begun anew.

    Returns:
        A function that gives the rows of all files in the order of ``texts``, mapped from the disk.
    """
    prepare_folder(folder, made_with)
    chunks = list(in_chunks(length_order(texts), chunk_size))
    files = [
        EmbeddingFile(folder / f"{number:05d}.npy", [(len(chunk), [texts[i] for i in chunk])])
        for number, chunk in enumerate(chunks)
    ]
    encode_files(files, run, f"encode {folder.name}", "text")
    return lambda: _gathered([file.path for file in files], chunks, folder.with_suffix(".npy"))


def _gathered(paths: list[Path], places: list[list[int]], output: Path) -> Embeddings:
    """The rows of all files, each at its place, in one file that is mapped from the disk."""
    parts = [np.load(path, mmap_mode="r") for path in paths]
    shape = (sum(map(len, parts)), parts[0].shape[1])
    rows = np.lib.format.open_memmap(output, mode="w+", dtype=np.float32, shape=shape)
    reserve(output)
    for place, part in zip(places, parts, strict=True):
        rows[place] = part
    return rows
