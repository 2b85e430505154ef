"""The RAG pipeline: retrieve, rerank, generate, evaluate, each stage a file and one model at a time.

FlashRAG's SequentialPipeline holds retriever, reranker and generator in memory together and keeps
nothing. Here a stage's file is named by a hash of what it depends on: another reranker does not
retrieve again, another generator does not rerank again.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from utils.config import UsageError, settings_of
from utils.files import atomic, dump_line, read_rows, write_lines
from utils.intervals import Interval, bootstrap
from utils.journal import Journal, resume
from utils.manifest import Phase, digest, fingerprint
from utils.metrics import letter_metrics, ranking_metrics, relevance, text_metrics
from utils.passages import PassageTexts, passages_path
from utils.rows import Candidates, Question

RERANK_CHUNK = 64  # questions between two savings of progress
RERANK_SETTINGS = ("rerank_max_length", "rerank_use_fp16")
NO_RERANKER = "none"


class RagPipeline:
    """One RAG run over one set of questions.

    Args:
        questions: to answer.
        args: the ``retrieval`` and ``rag`` sections' settings.
    """

    def __init__(self, questions: list[Question], args: argparse.Namespace) -> None:
        self.questions, self.args = questions, args
        self.stages = Path(args.save_dir) / "stages"
        self.facts: dict[str, Any] = {}

    def retrieve(self) -> Path | None:
        """Candidates of every question, ``retrieval_topk`` each; None for the closed-book baseline."""
        args = self.args
        if args.retrieval_topk == 0:
            return None
        from utils.retrieval import RETRIEVAL_SETTINGS, retrieve

        questions = digest([row.model_dump() for row in self.questions])
        inputs = [fingerprint(path) for path in (args.index_path, args.corpus_path, args.retriever_path)]
        key = digest([questions, inputs, settings_of(args, *RETRIEVAL_SETTINGS, "retrieval_topk")])
        output = self.stages / f"retrieve_{args.dataset}_{args.split}_{key}.jsonl"
        retrieve(self.questions, args, args.retrieval_topk, output)
        return output

    def rerank(self, retrieved: Path) -> Path:
        """The same candidates in the reranker's order with its scores; the retrieval file itself without one."""
        args = self.args
        if args.rerank_model_path is None:
            return retrieved
        settings = settings_of(args, *RERANK_SETTINGS)
        key = digest([fingerprint(retrieved), fingerprint(args.rerank_model_path), settings])
        output = self.stages / f"rerank_{args.dataset}_{args.split}_{key}.jsonl"
        phase = Phase(output, [retrieved, args.rerank_model_path], settings)
        if phase.is_done(args.overwrite):
            return output
        from utils.reranker import LengthSortedReranker

        reranker = LengthSortedReranker(args)
        texts = PassageTexts(passages_path(retrieved))
        candidates = read_rows(retrieved, Candidates)

        def work(chunk: list[Candidates]) -> list[dict[str, Any]]:
            docs = [[{"id": pid, "contents": texts[pid]} for pid in row.passage_ids] for row in chunk]
            ranked, scores = reranker.rerank([row.question for row in chunk], docs, topk=args.retrieval_topk)
            return [
                {"passage_ids": [doc["id"] for doc in found], "scores": score}
                for found, score in zip(ranked, scores, strict=True)
            ]

        with Journal(output.with_suffix(".journal.jsonl"), made_with=phase.key) as journal:
            resume(journal, candidates, lambda row: row.id, RERANK_CHUNK, work, "rerank")
            write_lines(output, (row.model_copy(update=journal.records[row.id]) for row in candidates))
            phase.finish(len(candidates))
            journal.delete()
        return output

    def generate(self, passages: Sequence[list[str]]) -> list[str]:
        """One answer a question from its first ``rerank_topk`` passages.

        Args:
            passages: for each question its passage texts, best first; empty lists for closed book.
        """
        from utils.generators import make_generator
        from utils.prompts import RagPrompt

        generator = make_generator(self.args)
        prompt = RagPrompt(self.args.prompts, self.args.max_input_tokens, generator.count_tokens)
        prompts = [
            prompt.build(row.question, texts[: self.args.rerank_topk])
            for row, texts in zip(self.questions, passages, strict=True)
        ]
        self.facts["prompts with trimmed passages"] = prompt.trimmed
        if prompt.trimmed:
            print(f"passages were trimmed in {prompt.trimmed} of {len(prompts)} prompts (--max_input_tokens)")
        return generator.generate(prompts)

    def run(self, output: Path) -> dict[str, Interval]:
        """All stages; writes the run's folder and returns its metrics.

        The folder holds ``intermediate_data.json`` (FlashRAG's layout), ``metric_score.txt``,
        ``metrics.json`` with intervals, and ``run.trec`` and ``qrels.trec`` of the candidates.
        """
        retrieved = self.retrieve()
        release_memory()
        ranked = self.rerank(retrieved) if retrieved else None
        release_memory()
        rows: list[dict[str, Any]] = [row.model_dump(exclude_none=True) for row in self.questions]
        texts: list[list[str]] = [[] for _ in rows]
        scores: dict[str, list[float]] = {}
        if retrieved and ranked:
            candidates = read_rows(ranked, Candidates)
            store = PassageTexts(passages_path(retrieved))
            texts = [[store[pid] for pid in row.passage_ids[: self.args.rerank_topk]] for row in candidates]
            if self.args.answer_type == "text":
                scores |= self._rank_quality(candidates, store, output)
        answers = self.generate(texts)
        gold = [row.golden_answers for row in self.questions]
        measure = letter_metrics if self.args.answer_type == "letter" else text_metrics
        scores |= measure(answers, gold)
        for i, row in enumerate(rows):
            kept = candidates[i].passage_ids[: self.args.rerank_topk] if ranked else []
            row["output"] = {
                "retrieval_result": [{"id": pid, "contents": text} for pid, text in zip(kept, texts[i], strict=True)],
                "pred": answers[i],
                "metric_score": {name: values[i] for name, values in scores.items()},
            }
        return self._save(rows, scores, output)

    def _rank_quality(self, candidates: list[Candidates], store: PassageTexts, output: Path) -> dict[str, list[float]]:
        # Ranks in place of scores: evaluators break ties between equal scores by passage id.
        run = {row.id: {pid: -float(rank) for rank, pid in enumerate(row.passage_ids)} for row in candidates}
        needed = {pid: store[pid] for row in candidates for pid in row.passage_ids}
        answers = {row.id: row.golden_answers for row in candidates}
        qrels = relevance(run, needed, answers)
        with atomic(output / "run.trec") as handle:
            for row in candidates:
                for rank, (pid, score) in enumerate(zip(row.passage_ids, row.scores, strict=True), 1):
                    handle.write(f"{_word(row.id)} Q0 {_word(pid)} {rank} {score} radio\n".encode())
        with atomic(output / "qrels.trec") as handle:
            for query, judged in qrels.items():
                for pid, label in judged.items():
                    handle.write(f"{_word(query)} 0 {_word(pid)} {label}\n".encode())
        cutoffs = sorted({1, self.args.rerank_topk, self.args.retrieval_topk})
        return ranking_metrics(qrels, run, cutoffs)

    def _save(self, rows: list[dict[str, Any]], scores: dict[str, list[float]], output: Path) -> dict[str, Interval]:
        summary = {name: bootstrap(values, self.args.seed) for name, values in scores.items()}
        with atomic(output / "metric_score.txt") as handle:
            handle.write("".join(f"{name}: {found.mean}\n" for name, found in summary.items()).encode())
        with atomic(output / "metrics.json") as handle:
            handle.write(orjson.dumps({k: asdict(v) for k, v in summary.items()}, option=orjson.OPT_INDENT_2))
        with atomic(output / "intermediate_data.json") as handle:
            handle.write(b"[\n" + b",\n".join(dump_line(row).rstrip() for row in rows) + b"\n]\n")
        return summary


def reranker_name(args: argparse.Namespace) -> str:
    """The reranker's name in tables and folders: as given, else the model folder's, else ``none``.

    Raises:
        UsageError: a name that is no model's and no path to go with it.
    """
    if args.rerank_model_path is None:
        if args.rerank_model_name not in (None, NO_RERANKER):
            raise UsageError(
                f"--rerank_model_name {args.rerank_model_name} needs --rerank_model_path (folder or hub id); "
                "leave both out to keep the retriever's order"
            )
        return NO_RERANKER
    return args.rerank_model_name or Path(args.rerank_model_path).name


def _word(name: str) -> str:
    """An id as TREC's files need it: they separate columns by blanks."""
    return "_".join(name.split())


def release_memory() -> None:
    """Give back a finished stage's model before the next one loads."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
