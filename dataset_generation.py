"""Retrieve candidates for the training questions and score them.

    python dataset_generation.py --dataset=nq --phase=get_docs
    python dataset_generation.py --dataset=nq --phase=generate_dataset --method=reason
    python dataset_generation.py --dataset=nq --phase=generate_dataset --method=retrieval
    python dataset_generation.py --dataset=mine --corpus_path=mine.jsonl --check

get_docs          reads   train.jsonl, the index and its corpus
                  writes  train_docs_N.jsonl           {id, question, golden_answers, passage_ids, scores}
                          train_docs_N.passages.jsonl  {id, contents}, every retrieved passage once
generate_dataset  reads   train_docs_N.*, and for --method=reason reason/train_with_reason.jsonl
                  writes  METHOD/score_cache.jsonl     {id, query, passage_ids, scores}, best first
                          METHOD/FinetuneDataset_for_flagembedding.jsonl, sampled from this score alone
                  --rationale NAME reads and writes below NAME instead of reason; none reads no rationales, scores
                  question and answer alone, and writes below answer_only

--check           prints rows, missing fields, repeated ids, and how many questions have no answer in any passage;
                  exit code 1 on faults

All below DATA_DIR/DATASET. --method=reason scores a passage by its similarity to question, answer and
rationale; --method=retrieval by the retriever. score_cache_to_dataset.py fuses the two.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from utils.config import UsageError, dataset_dir, docs_path, phase_arguments, rationale_dir, run_main
from utils.devices import select_devices

EXTRA: list[tuple[str, dict[str, Any]]] = [
    ("--phase", {"choices": ["get_docs", "generate_dataset"], "help": "what to make"}),
    ("--method", {"choices": ["reason", "retrieval"], "help": "score for --phase=generate_dataset"}),
    ("--check", {"action": "store_true", "help": "check the questions and the corpus, and make nothing"}),
]


def main() -> int:
    """Parse the command line, run one phase, and return the exit code."""
    args = phase_arguments(__doc__, ["retrieval", "get_docs", "scoring", "fusion", "engine"], extra=EXTRA)
    if args.check:
        from utils.retrieval.answers import check_dataset

        return 0 if check_dataset(dataset_dir(args), Path(args.corpus_path)) else 1
    if args.phase is None:
        raise UsageError("--phase=get_docs or --phase=generate_dataset says what to make (--check makes nothing)")
    if args.phase == "generate_dataset" and args.method is None:
        raise UsageError("--phase=generate_dataset needs --method=reason or --method=retrieval")
    select_devices(args)
    get_docs(args) if args.phase == "get_docs" else generate_dataset(args)
    return 0


# The imports below take up to a second, for which --help need not wait.


def get_docs(args: argparse.Namespace) -> None:
    """Retrieve the candidates of the training questions."""
    from utils.retrieval.candidates import retrieve
    from utils.store.jsonlines import read_rows
    from utils.store.rows import Question

    source = dataset_dir(args) / "train.jsonl"
    dropped = Counter[str]() if args.skip_bad_rows else None
    made_by = f"see README, 'Your own data': {source}"
    questions = read_rows(source, Question, made_by, args.train_questions, dropped=dropped)
    retrieve(questions, args, args.docs_topk, docs_path(args), dropped)


def generate_dataset(args: argparse.Namespace) -> None:
    """Score the candidates, and sample a training file from this score alone."""
    from utils.store.jsonlines import passages_path
    from utils.training.groups import check_sampling, write_training_file
    from utils.training.scores import retrieval_scores, score_rationales

    check_sampling(args.sampling, args.fusion_topk)
    folder = rationale_dir(args) if args.method == "reason" else dataset_dir(args) / "retrieval"
    docs, cache = docs_path(args), folder / "score_cache.jsonl"
    if args.method == "reason":
        rationales = None if args.rationale == "none" else folder / "train_with_reason.jsonl"
        score_rationales(docs, rationales, cache, args)
    else:
        retrieval_scores(docs, cache, args.overwrite)
    write_training_file(
        reason_cache=cache,
        retrieval_cache=cache,
        docs=docs,
        passages=passages_path(docs),
        output=folder / "FinetuneDataset_for_flagembedding.jsonl",
        weight=1.0,
        args=args,
    )


if __name__ == "__main__":
    run_main(main)
