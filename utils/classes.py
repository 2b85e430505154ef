"""The RAG pipeline: retrieve, rerank, generate, evaluate, each stage a file and one model at a time.

FlashRAG's SequentialPipeline holds retriever, reranker and generator in memory together and keeps
nothing. Here a stage's file is named by a hash of what it depends on: another reranker does not
retrieve again, another generator does not rerank again.
"""

from __future__ import annotations

import argparse
import functools
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from utils.config import UsageError, settings_of, without_secrets
from utils.rag.metrics import letter_metrics, ranking_metrics, relevance, text_metrics
from utils.rag.statistics import Interval, bootstrap
from utils.rag.trec import write_qrels, write_run
from utils.ray_engine import make_engine
from utils.retrieval.candidates import RETRIEVAL_SETTINGS
from utils.store.files import atomic
from utils.store.journal import Journal, resume
from utils.store.jsonlines import dump_line, read_rows, write_lines
from utils.store.lookup import PassageTexts, passages_path
from utils.store.manifest import Phase, digest, fingerprint
from utils.store.rows import Candidates, Question

if TYPE_CHECKING:
    from utils.llm.types import Prompt
    from utils.rag.generators import Generator

RERANK_CHUNK = 64  # questions between two savings of progress
RERANK_SETTINGS = ("rerank_max_length", "use_fp16")
# What a run's answers and rankings depend on, beside its input files.
OUTCOME_SETTINGS = (
    "dataset", "split", "test_sample_num", "retrieval_topk", "rerank_topk", "rerank_max_length", "use_fp16",
    "framework", "openai_model", "model_path", "quantization", "max_tokens", "max_input_tokens", "stop", "answer_type",
    "seed", "prompts",
)  # fmt: skip
NO_RETRIEVAL = "closed-book"
NO_RERANKER = "none"
ORACLE = "oracle"
NO_GENERATOR = "none"


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
        letters = args.answer_type == "letter"
        if letters and reranker_name(args) == ORACLE:
            raise UsageError("--rerank_model_name oracle looks for answers in passages; a letter is in all of them")
        if args.framework == NO_GENERATOR and (letters or args.retrieval_topk == 0):
            raise UsageError("--framework none measures rankings: it needs --answer_type text and retrieval")

    def retrieve(self) -> Path | None:
        """Candidates of every question, ``retrieval_topk`` each; None for the closed-book baseline."""
        args = self.args
        if args.retrieval_topk == 0:
            return None
        from utils.retrieval.candidates import retrieve

        output = self._retrieval_path()
        retrieve(self.questions, args, args.retrieval_topk, output)
        return output

    def rerank(self, retrieved: Path) -> Path:
        """The same candidates in the reranker's order with its scores; the retrieval file itself without one."""
        args = self.args
        name = reranker_name(args)
        if name == NO_RERANKER:
            return retrieved
        if name == ORACLE:
            return self._oracle(retrieved)
        output = self._ranking_path(retrieved)
        journal_path = output.with_suffix(".journal.jsonl")
        inputs = [retrieved, args.rerank_model_path]
        phase = Phase(output, inputs, settings_of(args, *RERANK_SETTINGS), scratch=[journal_path])
        if phase.is_done(args.overwrite):
            return output
        from utils.rag.rerankers import RerankWork

        texts = PassageTexts(passages_path(retrieved))
        candidates = read_rows(retrieved, Candidates)
        pairs = sum(len(row.passage_ids) for row in candidates)
        run = make_engine(args).start(functools.partial(RerankWork, without_secrets(args), pairs))

        def work(chunks: Iterable[list[Candidates]]) -> Iterator[tuple[int, Any]]:
            return run([(row, [texts[pid] for pid in row.passage_ids]) for row in chunk] for chunk in chunks)

        with Journal(journal_path, made_with=phase.key) as journal:
            resume(journal, candidates, lambda row: row.id, RERANK_CHUNK, work, "rerank")
            write_lines(output, (row.model_copy(update=journal[row.id]) for row in candidates))
            phase.finish(len(candidates))
            journal.delete()
        return output

    def _oracle(self, retrieved: Path) -> Path:
        """Passages with an answer first, each half in the retriever's order: the most a reranker could do."""
        output = self._ranking_path(retrieved)
        phase = Phase(output, [retrieved], {})
        if not phase.is_done(self.args.overwrite):
            candidates = read_rows(retrieved, Candidates)
            qrels = relevance(candidates, PassageTexts(passages_path(retrieved)))
            phase.finish(write_lines(output, (_answers_first(row, qrels[row.id]) for row in candidates)))
        return output

    def _retrieval_path(self) -> Path:
        args = self.args
        questions = digest([row.model_dump() for row in self.questions])
        inputs = [fingerprint(path) for path in (args.index_path, args.corpus_path, args.retriever_path)]
        key = digest([questions, inputs, settings_of(args, *RETRIEVAL_SETTINGS, "retrieval_topk")])
        return self.stages / f"retrieve_{args.dataset}_{args.split}_{key}.jsonl"

    def _ranking_path(self, retrieved: Path) -> Path:
        args, name = self.args, reranker_name(self.args)
        if name == NO_RERANKER:
            return retrieved
        if name == ORACLE:
            return retrieved.with_name(retrieved.name.replace("retrieve_", "oracle_"))
        inputs = [fingerprint(retrieved), fingerprint(args.rerank_model_path)]
        key = digest([*inputs, settings_of(args, *RERANK_SETTINGS)])
        return self.stages / f"rerank_{args.dataset}_{args.split}_{key}.jsonl"

    def forecast(self) -> str:
        """What the answers of an API generator would take, from rankings that are there already.

        Raises:
            UsageError: another generator, or rankings that are still to be made.
        """
        from utils.rag.generators import OpenAIGenerator

        if self.args.framework != "openai":
            raise UsageError("--dry_run is for --framework openai; the others ask no server")
        passages: list[list[str]] = [[] for _ in self.questions]
        if self.args.retrieval_topk:
            retrieved = self._retrieval_path()
            ranked = self._ranking_path(retrieved) if retrieved.exists() else retrieved
            if not ranked.exists():
                raise UsageError("the rankings are not made yet: run the same with --framework none, which asks no LLM")
            store = PassageTexts(passages_path(retrieved))
            rows = read_rows(ranked, Candidates)
            passages = [[store[pid] for pid in row.passage_ids[: self.args.rerank_topk]] for row in rows]
        generator = OpenAIGenerator(self.args)
        return generator.forecast(self._prompts(generator, passages))

    def _prompts(self, generator: Generator, passages: Sequence[list[str]]) -> list[Prompt]:
        from utils.rag.prompts import RagPrompt

        prompt = RagPrompt(self.args.prompts, self.args.max_input_tokens, generator.count_tokens, generator.defuse)
        prompts = [
            prompt.build(row.question, texts[: self.args.rerank_topk])
            for row, texts in zip(self.questions, passages, strict=True)
        ]
        self.facts["prompts with trimmed passages"] = prompt.trimmed
        if prompt.trimmed:
            print(f"passages were trimmed in {prompt.trimmed} of {len(prompts)} prompts (--max_input_tokens)")
        return prompts

    def generate(self, passages: Sequence[list[str]]) -> list[str]:
        """One answer a question from its first ``rerank_topk`` passages.

        Args:
            passages: for each question its passage texts, best first; empty lists for closed book.
        """
        from utils.rag.generators import make_generator

        generator = make_generator(self.args)
        answers = generator.generate(self._prompts(generator, passages))
        self.facts |= generator.facts
        return answers

    def run(self, output: Path) -> dict[str, Interval]:
        """All stages; writes the run's folder and returns its metrics.

        The folder holds ``intermediate_data.json`` (FlashRAG's layout), ``metric_score.txt``,
        ``metrics.json`` with intervals, and the stages' rankings with their judgements in TREC's formats.
        """
        retrieved = self.retrieve()
        release_memory()
        ranked = self.rerank(retrieved) if retrieved else None
        release_memory()
        rows: list[dict[str, Any]] = [row.model_dump(exclude_none=True) for row in self.questions]
        kept: list[list[str]] = [[] for _ in rows]
        texts: list[list[str]] = [[] for _ in rows]
        scores: dict[str, list[float]] = {}
        if retrieved and ranked:
            self.facts["stages"] = {"retrieval": str(retrieved), "reranking": str(ranked)}
            store = PassageTexts(passages_path(retrieved))
            kept = [row.passage_ids[: self.args.rerank_topk] for row in read_rows(ranked, Candidates)]
            texts = [[store[pid] for pid in ids] for ids in kept]
            if self.args.answer_type == "text":
                scores |= self._rank_quality(retrieved, ranked, store, output)
        answers: list[str] | None = None
        if self.args.framework != NO_GENERATOR:
            answers = self.generate(texts)
            measure = letter_metrics if self.args.answer_type == "letter" else text_metrics
            scores |= measure(answers, [row.golden_answers for row in self.questions])
        for i, row in enumerate(rows):
            row["output"] = {
                "retrieval_result": [
                    {"id": pid, "contents": text} for pid, text in zip(kept[i], texts[i], strict=True)
                ],
                **({"pred": answers[i]} if answers else {}),
                "metric_score": {name: values[i] for name, values in scores.items()},
            }
        return self._save(rows, scores, output)

    def _rank_quality(self, retrieved: Path, ranked: Path, store: PassageTexts, output: Path) -> dict[str, list[float]]:
        candidates = read_rows(retrieved, Candidates)
        qrels = relevance(candidates, store)
        write_qrels(output / "qrels.trec", qrels)
        write_run(output / "retrieval.trec", candidates, self.args.retrieval_method)
        (output / "rerank.trec").unlink(missing_ok=True)  # an earlier run's of this name
        if ranked != retrieved:
            candidates = read_rows(ranked, Candidates)
            write_run(output / "rerank.trec", candidates, reranker_name(self.args))
        cutoffs = sorted({1, self.args.rerank_topk, self.args.retrieval_topk})
        return ranking_metrics(qrels, {row.id: row.passage_ids for row in candidates}, cutoffs)

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
        UsageError: a name that is no model's and no path to go with it, or a path under a reserved name.
    """
    if args.rerank_model_path is None:
        if args.rerank_model_name not in (None, NO_RERANKER, ORACLE):
            raise UsageError(
                f"--rerank_model_name {args.rerank_model_name} needs --rerank_model_path (folder or hub id); "
                "leave both out to keep the retriever's order"
            )
        return args.rerank_model_name or NO_RERANKER
    if args.rerank_model_name in (NO_RERANKER, ORACLE):
        raise UsageError(f"--rerank_model_name {args.rerank_model_name} goes without --rerank_model_path")
    return args.rerank_model_name or Path(args.rerank_model_path).name


def outcome_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that a finished run is recognised by; they stand in its manifest."""
    ranker = NO_RETRIEVAL if args.retrieval_topk == 0 else reranker_name(args)
    return settings_of(args, *OUTCOME_SETTINGS, *RETRIEVAL_SETTINGS) | {"ranker": ranker}


def generator_name(args: argparse.Namespace) -> str:
    """The generator's name in tables and folders; ``none`` where nothing is generated."""
    if args.framework == NO_GENERATOR:
        return NO_GENERATOR
    return args.openai_model if args.framework == "openai" else Path(args.model_path).name


def _answers_first(row: Candidates, labels: Mapping[str, int]) -> Candidates:
    order = sorted(row.passage_ids, key=lambda pid: -labels[pid])
    return row.model_copy(update={"passage_ids": order, "scores": [float(labels[pid]) for pid in order]})


def release_memory() -> None:
    """Give back a finished stage's model before the next one loads."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
