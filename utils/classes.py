"""The RAG pipeline: retrieve, rerank, generate, evaluate; each stage is a file, and one model is loaded at a time.

FlashRAG's SequentialPipeline holds all models in memory together and keeps nothing. Here the file of a stage is
named by a hash of what it depends on: another reranker does not retrieve again, another generator does not rerank
again.
"""

from __future__ import annotations

import argparse
import functools
import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from utils.config import UsageError, dataset_dir, settings_of, without_secrets
from utils.devices import check_classifier, load_tokenizer, local_model
from utils.llm.types import Prompt
from utils.mmlu.letters import letter_metrics
from utils.rag.generators import (
    LOCAL_FRAMEWORKS,
    NO_GENERATOR,
    Generator,
    OpenAIGenerator,
    check_framework,
    make_generator,
)
from utils.rag.metrics import Interval, bootstrap, ranking_metrics, relevance, text_metrics, write_qrels, write_run
from utils.rag.prompts import RagPrompt, check_prompts
from utils.ray_engine import start_workers
from utils.retrieval.candidates import retrieval_inputs, retrieval_settings, retrieve
from utils.store.files import file_name, write_file
from utils.store.journal import Journal, resume
from utils.store.jsonlines import PassageTexts, dump_line, passages_path, read_rows, write_lines
from utils.store.manifest import Phase, digest, fingerprint
from utils.store.rows import Candidates, Question

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


def run_rag(args: argparse.Namespace) -> str:
    """Run the pipeline on a dataset's split, unless that run is finished; return what to print."""
    source = dataset_dir(args) / f"{args.split}.jsonl"
    dropped = Counter[str]() if args.skip_bad_rows else None
    pipeline = RagPipeline(read_rows(source, Question, limit=args.test_sample_num, dropped=dropped), args)
    settings, generator = outcome_settings(args), generator_name(args)
    ranker = settings["ranker"]
    folder = Path(args.save_dir) / file_name(args.run_name or f"{args.dataset}_{args.split}_{ranker}_{generator}")
    inputs: list[str | Path] = [source]
    if args.retrieval_topk:
        inputs += filter(None, [*retrieval_inputs(args), args.rerank_model_path])
    if args.framework in LOCAL_FRAMEWORKS:
        inputs.append(args.model_path)
    phase = Phase(folder / "intermediate_data.json", inputs, settings)
    summary = folder / "metric_score.txt"
    if phase.is_done(args.overwrite) and summary.exists():
        return summary.read_text().rstrip("\n")
    if args.dry_run:
        return pipeline.forecast()
    said = pipeline.run(folder)
    phase.finish(len(pipeline.questions), dropped, facts=pipeline.facts, reranker=ranker, generator=generator)
    return said


class RagPipeline:
    """One RAG run over questions, with the ``retrieval`` and ``rag`` sections' settings."""

    def __init__(self, questions: list[Question], args: argparse.Namespace) -> None:
        self.questions, self.args = questions, args
        self.stages = Path(args.save_dir) / "stages"
        self.facts: dict[str, Any] = {}  # for the run's manifest
        letters = args.answer_type == "letter"
        if not letters and args.answer_type != "text":
            raise UsageError(f"--answer_type {args.answer_type!r} is neither text nor letter")
        if letters and reranker_name(args) == ORACLE:
            raise UsageError("--rerank_model_name oracle looks for answers in passages; a letter is in all of them")
        if args.framework == NO_GENERATOR and (letters or args.retrieval_topk == 0):
            raise UsageError("--framework none measures rankings: it needs --answer_type text and retrieval")
        if args.framework != NO_GENERATOR and args.retrieval_topk:
            check_prompts(args.prompts)

    @functools.cached_property
    def retrieved(self) -> Path:
        """The file of the retriever's `Candidates`."""
        args = self.args
        questions = digest([row.model_dump() for row in self.questions])
        inputs = [fingerprint(path) for path in retrieval_inputs(args)]
        key = digest([questions, inputs, retrieval_settings(args) | settings_of(args, "retrieval_topk")])
        return self.stages / f"retrieve_{args.dataset}_{args.split}_{key}.jsonl"

    @functools.cached_property
    def ranked(self) -> Path:
        """The file of the reranker's `Candidates`, once those of the retriever exist; without a reranker the same."""
        args, name = self.args, reranker_name(self.args)
        if name == NO_RERANKER:
            return self.retrieved
        if name == ORACLE:
            return self.retrieved.with_name(self.retrieved.name.replace("retrieve_", "oracle_"))
        inputs = [fingerprint(self.retrieved), fingerprint(args.rerank_model_path)]
        key = digest([*inputs, settings_of(args, *RERANK_SETTINGS)])
        return self.stages / f"rerank_{args.dataset}_{args.split}_{key}.jsonl"

    @functools.cached_property
    def texts(self) -> PassageTexts:
        """The texts of the retrieved passages."""
        return PassageTexts(passages_path(self.retrieved))

    def run(self, folder: Path) -> str:
        """Run all stages and write the run's folder (see run_rag.py); return the metrics with their intervals."""
        self._check_models()
        passages: list[list[dict[str, str]]] = [[] for _ in self.questions]
        scores: dict[str, list[float]] = {}
        if self.args.retrieval_topk:
            self._rank()
            passages = self._best_passages()
            if self.args.answer_type == "text":
                scores |= self._rank_quality(folder)
        rows: list[dict[str, Any]] = [question.model_dump(exclude_none=True) for question in self.questions]
        for row, found in zip(rows, passages, strict=True):
            row["output"] = {"retrieval_result": found}
        if self.args.framework != NO_GENERATOR:
            generator = make_generator(self.args)
            answers = generator.generate(self._prompts(generator, passages))
            self.facts |= generator.facts
            measure = letter_metrics if self.args.answer_type == "letter" else text_metrics
            scores |= measure(answers, [question.golden_answers for question in self.questions])
            for row, answer in zip(rows, answers, strict=True):
                row["output"]["pred"] = answer
        for i, row in enumerate(rows):
            row["output"]["metric_score"] = {name: values[i] for name, values in scores.items()}
        return _save(rows, {name: bootstrap(values, self.args.seed) for name, values in scores.items()}, folder)

    def _check_models(self) -> None:
        """Refuse, before the retrieval, a reranker or generator whose folder, tokenizer, head or library is missing."""
        args = self.args
        reranker = args.rerank_model_path if args.retrieval_topk else None
        generator = args.model_path if args.framework in LOCAL_FRAMEWORKS else None
        for path in filter(None, (reranker, generator)):
            folder, trust = local_model(path), path in args.trust_remote_code
            load_tokenizer(folder, trust)
            if path == reranker:
                check_classifier(folder, trust)
        check_framework(args)

    def forecast(self) -> str:
        """Say what a server's answers would take, from rankings that are there already."""
        if self.args.framework != "openai":
            raise UsageError("--dry_run is for --framework openai; the others ask no server")
        passages: list[list[dict[str, str]]] = [[] for _ in self.questions]
        if self.args.retrieval_topk:
            if not (self.retrieved.exists() and self.ranked.exists()):
                raise UsageError("the rankings are not made yet: run the same with --framework none, which asks no LLM")
            passages = self._best_passages()
        generator = OpenAIGenerator(self.args)
        return generator.forecast(self._prompts(generator, passages))

    def _rank(self) -> None:
        """Retrieve and rerank."""
        retrieve(self.questions, self.args, self.args.retrieval_topk, self.retrieved)
        release_memory()
        if reranker_name(self.args) == ORACLE:
            self._rank_by_answers()
        elif self.ranked != self.retrieved:
            self._rerank()
        release_memory()
        self.facts["stages"] = {"retrieval": str(self.retrieved), "reranking": str(self.ranked)}

    def _rerank(self) -> None:
        """Sort the candidates by the reranker's scores."""
        args = self.args
        journal_path = self.ranked.with_suffix(".journal.jsonl")
        inputs = [self.retrieved, args.rerank_model_path]
        phase = Phase(self.ranked, inputs, settings_of(args, *RERANK_SETTINGS), scratch=[journal_path])
        if phase.is_done(args.overwrite):
            return
        from utils.rag.rerankers import rerank_worker  # it loads torch, which a finished stage does not need

        candidates = read_rows(self.retrieved, Candidates)
        pairs = sum(len(row.passage_ids) for row in candidates)
        run = start_workers(args, functools.partial(rerank_worker, without_secrets(args), pairs))

        def work(chunks: Iterable[list[Candidates]]) -> Iterator[tuple[int, Any]]:
            return run([(row, [self.texts[pid] for pid in row.passage_ids]) for row in chunk] for chunk in chunks)

        with Journal(journal_path, made_with=phase.key) as journal:
            resume(journal, candidates, lambda row: row.id, RERANK_CHUNK, work, "rerank")
            write_lines(self.ranked, (row.model_copy(update=journal[row.id]) for row in candidates))
            phase.finish(len(candidates))
            journal.delete()

    def _rank_by_answers(self) -> None:
        """Put passages with an answer first, otherwise in the retriever's order: the most a reranker could do."""
        phase = Phase(self.ranked, [self.retrieved], {})
        if phase.is_done(self.args.overwrite):
            return
        candidates = read_rows(self.retrieved, Candidates)
        qrels = relevance(candidates, self.texts)

        def ranked(row: Candidates) -> Candidates:
            labels = qrels[row.id]
            order = sorted(row.passage_ids, key=lambda pid: -labels[pid])
            return row.model_copy(update={"passage_ids": order, "scores": [float(labels[pid]) for pid in order]})

        phase.finish(write_lines(self.ranked, map(ranked, candidates)))

    def _best_passages(self) -> list[list[dict[str, str]]]:
        """Read the best ``rerank_topk`` passages of each question."""
        best = (row.passage_ids[: self.args.rerank_topk] for row in read_rows(self.ranked, Candidates))
        return [[{"id": pid, "contents": self.texts[pid]} for pid in ids] for ids in best]

    def _prompts(self, generator: Generator, passages: list[list[dict[str, str]]]) -> list[Prompt]:
        prompt = RagPrompt(self.args.prompts, self.args.max_input_tokens, generator.count_tokens, generator.defuse)
        pairs = zip(self.questions, passages, strict=True)
        prompts = [prompt.build(row.question, [doc["contents"] for doc in found]) for row, found in pairs]
        self.facts["prompts with trimmed passages"] = prompt.trimmed
        if prompt.trimmed:
            print(f"passages were trimmed in {prompt.trimmed} of {len(prompts)} prompts (--max_input_tokens)")
        return prompts

    def _rank_quality(self, folder: Path) -> dict[str, list[float]]:
        """Write the rankings as TREC files and measure the last one, by question."""
        candidates = read_rows(self.retrieved, Candidates)
        qrels = relevance(candidates, self.texts)
        write_qrels(folder / "qrels.trec", qrels)
        write_run(folder / "retrieval.trec", candidates, self.args.retrieval_method)
        (folder / "rerank.trec").unlink(missing_ok=True)  # of an earlier run with this name
        if self.ranked != self.retrieved:
            candidates = read_rows(self.ranked, Candidates)
            write_run(folder / "rerank.trec", candidates, reranker_name(self.args))
        cutoffs = sorted({1, self.args.rerank_topk, self.args.retrieval_topk})
        return ranking_metrics(qrels, {row.id: row.passage_ids for row in candidates}, cutoffs)


def _save(rows: list[dict[str, Any]], metrics: dict[str, Interval], folder: Path) -> str:
    """Write a run's rows and metrics; return the metrics as lines."""
    means = "".join(f"{name}: {interval.mean}\n" for name, interval in metrics.items())
    write_file(folder / "metric_score.txt", means)
    write_file(folder / "metrics.json", orjson.dumps(metrics, option=orjson.OPT_INDENT_2))
    lines = b",\n".join(dump_line(row).rstrip() for row in rows)
    write_file(folder / "intermediate_data.json", b"[\n" + lines + b"\n]\n")
    return "\n".join(f"{name:10} {interval}" for name, interval in metrics.items())


def reranker_name(args: argparse.Namespace) -> str:
    """Name the reranker in tables and folders: as given, else by the model's folder, else ``none``."""
    path, name = args.rerank_model_path, args.rerank_model_name
    if path is None and name not in (None, NO_RERANKER, ORACLE):
        keep = "leave both out to keep the retriever's order"
        raise UsageError(f"--rerank_model_name {name} needs --rerank_model_path (folder or hub id); {keep}")
    if path is not None and name in (NO_RERANKER, ORACLE):
        raise UsageError(f"--rerank_model_name {name} goes without --rerank_model_path")
    return name or (NO_RERANKER if path is None else Path(path).name)


def generator_name(args: argparse.Namespace) -> str:
    """Name the generator in tables and folders; ``none`` where nothing is generated."""
    if args.framework == NO_GENERATOR:
        return NO_GENERATOR
    return args.openai_model if args.framework == "openai" else Path(args.model_path).name


def outcome_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the settings that a finished run is recognised by; they stand in its manifest."""
    ranker = NO_RETRIEVAL if args.retrieval_topk == 0 else reranker_name(args)
    request = ["request"] if args.framework == "openai" and args.request else []
    if ranker == NO_RETRIEVAL:  # no retriever is asked what it declares
        args = argparse.Namespace(**vars(args) | {"retrieval_pooling_method": args.retrieval_pooling_method or "mean"})
    return settings_of(args, *OUTCOME_SETTINGS, *request) | retrieval_settings(args) | {"ranker": ranker}


def release_memory() -> None:
    """Give back a finished stage's model before the next one loads."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
