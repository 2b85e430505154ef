"""Rationale scores: how similar a passage is to question, answer and rationale (RADIO, step 3)."""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.config import UsageError
from utils.encoder import Embeddings, Encoder, length_order, make_scorer
from utils.files import atomic, lock_path, locked, read_rows, reserve, write_lines
from utils.fusion import descending
from utils.journal import in_chunks
from utils.manifest import Phase
from utils.passages import PassageTexts, passages_path
from utils.rationale import scored_text
from utils.rows import Candidates, Rationale, Scored

SCORER_SETTINGS = ("scorer", "scorer_max_length", "scorer_pooling_method", "scorer_use_fp16")
ENCODE_AT_ONCE = 64  # batches between two savings of progress


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
    scratch.mkdir(parents=True, exist_ok=True)
    with locked(lock_path(scratch)):
        encoder, size = make_scorer(args, len(used) + len(candidates)), args.scorer_batch_size
        encode = functools.partial(_encode_resumable, encoder=encoder, batch_size=size, made_with=phase.key)
        passages = encode([texts[pid] for pid in used], stem=scratch / "passages")
        queries = encode([scored_text(reasons[row.id]) for row in candidates], stem=scratch / "rationales")
        count = write_lines(output, _scored(candidates, queries, passages, {pid: i for i, pid in enumerate(used)}))
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


def _encode_resumable(texts: list[str], stem: Path, encoder: Encoder, batch_size: int, made_with: str) -> Embeddings:
    """Encode into a memory-mapped file that a later run with the same inputs goes on with.

    Args:
        texts: any order; encoded longest first.
        stem: path without suffix of the two scratch files.
        encoder: maps texts to rows.
        batch_size: texts a forward pass; progress is kept every `ENCODE_AT_ONCE` batches.
        made_with: identifies inputs and settings; scratch files of others are begun anew.

    Returns:
        Rows in the order of ``texts``.
    """
    rows_path, progress = stem.with_suffix(".npy"), stem.with_suffix(".done")
    state = progress.read_text().split() if progress.exists() and rows_path.exists() else []
    done = int(state[1]) if len(state) == 2 and state[0] == made_with else 0
    order = length_order(texts)
    rows: Any = np.lib.format.open_memmap(rows_path, mode="r+") if done else None
    with tqdm(total=len(order), initial=done, desc=f"encode {stem.name}", unit="text") as bar:
        for chunk in in_chunks(order[done:], batch_size * ENCODE_AT_ONCE):
            found = encoder.encode([texts[i] for i in chunk], batch_size)
            if rows is None:
                progress.unlink(missing_ok=True)  # it tells of other rows
                shape = (len(texts), found.shape[1])
                rows = np.lib.format.open_memmap(rows_path, mode="w+", dtype=np.float32, shape=shape)
                reserve(rows_path)
            rows[chunk] = found
            rows.flush()
            done += len(chunk)
            with atomic(progress) as handle:
                handle.write(f"{made_with} {done}".encode())
            bar.update(len(chunk))
    return rows
